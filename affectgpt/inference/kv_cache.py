"""Keys and values of a generation in blocks: transformers' own cache is copied whole for every new token."""

from __future__ import annotations

from typing import Any

import torch

_BLOCK = 64  # tokens by which the memory of a layer grows


def growing_cache(config: Any) -> Any:
    """An empty cache for ``generate`` whose layers grow by blocks; same numbers, same order as DynamicCache.

    None, for generate's own cache, where layers are of another kind (a sliding window) or this version of transformers
    has no layers.
    """
    try:
        from transformers.cache_utils import DynamicCache, DynamicLayer

        cache = DynamicCache(config=config)
    except (ImportError, TypeError):
        return None

    class GrowingLayer(DynamicLayer):
        _memory: tuple[torch.Tensor, torch.Tensor] | None = None

        def update(
            self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
        ) -> tuple[torch.Tensor, torch.Tensor]:
            """New states ``[B, heads, n, d]`` → all states so far, ``[B, heads, length, d]``."""
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            start = self.get_seq_length()
            end = start + key_states.shape[-2]
            if self._memory is None or end > self._memory[0].shape[-2] or not self._in_memory():
                room = -(-end // _BLOCK) * _BLOCK
                old = (self.keys, self.values)
                self._memory = tuple(x.new_empty(*x.shape[:-2], room, x.shape[-1]) for x in (key_states, value_states))
                if start:
                    for memory, states in zip(self._memory, old, strict=True):
                        memory[..., :start, :] = states
            for memory, states in zip(self._memory, (key_states, value_states), strict=True):
                memory[..., start:end, :] = states
            self.keys, self.values = (memory[..., :end, :] for memory in self._memory)
            return self.keys, self.values

        def _in_memory(self) -> bool:
            """False after something else has put other tensors in the states' place."""
            assert self._memory is not None
            return self.keys.data_ptr() == self._memory[0].data_ptr()

    if not cache.layers or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    cache.layers = [GrowingLayer() for _ in cache.layers]
    return cache
