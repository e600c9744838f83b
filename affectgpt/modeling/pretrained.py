"""Loading a Hugging Face folder, the same on every version of transformers in our range."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from affectgpt.core.errors import CheckpointError

# Weights that a complete folder may lack: they are made, not learnt, or not used without masking.
_MAY_MISS = re.compile(r"(masked_spec_embed|position_ids|lm_head\.weight)$")


def load_pretrained(cls: Any, folder: str | Path, *, dtype: torch.dtype) -> nn.Module:
    """``cls.from_pretrained`` of a local folder with an explicit dtype.

    Raises CheckpointError naming the folder when it does not load or lacks weights (which would be random).
    """
    import transformers
    from transformers.utils import logging as hf_logging

    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    argument = "dtype" if (major, minor) >= (4, 56) else "torch_dtype"
    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        model, info = cls.from_pretrained(folder, local_files_only=True, output_loading_info=True, **{argument: dtype})
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"{folder}: does not load as {cls.__name__} with transformers {transformers.__version__}: {error}"
        ) from error
    finally:
        if bars:
            hf_logging.enable_progress_bar()
    missing = sorted(key for key in info["missing_keys"] if not _MAY_MISS.search(key))
    if missing:
        raise CheckpointError(f"{folder}: as {cls.__name__} it lacks {len(missing)} weights, first: {missing[:3]}")
    return model
