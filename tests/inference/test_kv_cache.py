"""The cache that grows by blocks: the numbers of transformers' own."""

import pytest
import torch
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

from affectgpt.inference.kv_cache import _BLOCK, growing_cache

SHAPE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 50,
}  # fmt: skip

pytestmark = pytest.mark.skipif(
    growing_cache(Qwen2Config(**SHAPE)) is None, reason="this version of transformers has no cache layers"
)


def states(n, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 2, n, 8, generator=generator) for _ in range(2)]


def test_states_are_those_of_the_dynamic_cache_over_many_blocks():
    config = Qwen2Config(**SHAPE)
    ours, theirs = growing_cache(config), DynamicCache(config=config)
    for step, n in enumerate([_BLOCK - 3, *[1] * (_BLOCK + 10), 2 * _BLOCK, 1]):
        for layer in range(2):
            found, expected = (cache.update(*states(n, 2 * step + layer), layer) for cache in (ours, theirs))
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert ours.get_seq_length() == theirs.get_seq_length()


def test_states_stay_where_they_are_until_a_block_is_full():
    cache = growing_cache(Qwen2Config(**SHAPE))
    places = [cache.update(*states(1, step), 0)[0].data_ptr() for step in range(2 * _BLOCK)]
    assert len(set(places)) == 2


def test_rows_may_be_chosen_in_between():
    ours, theirs = growing_cache(Qwen2Config(**SHAPE)), DynamicCache(config=Qwen2Config(**SHAPE))
    for cache in (ours, theirs):
        for layer in range(2):
            cache.update(*states(5, layer), layer)
        cache.batch_select_indices(torch.tensor([2, 0]))
    for layer in range(2):
        new = [tensor[:2] for tensor in states(1, 9)]
        for a, b in zip(ours.update(*new, layer), theirs.update(*new, layer), strict=True):
            assert torch.equal(a, b)


def test_generation_is_the_same():
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**SHAPE)).eval()
    embeds, mask = torch.randn(3, 20, 32), torch.ones(3, 20, dtype=torch.long)
    mask[1, :7] = 0
    settings = {"max_new_tokens": 2 * _BLOCK, "do_sample": False, "eos_token_id": 49, "pad_token_id": 0}
    answers = [
        model.generate(inputs_embeds=embeds, attention_mask=mask, past_key_values=cache, **settings)
        for cache in (None, growing_cache(model.config))
    ]
    assert torch.equal(*answers)


def test_other_kinds_of_layers_are_left_to_transformers():
    windowed = Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=8, max_window_layers=1)
    assert growing_cache(windowed) is None
