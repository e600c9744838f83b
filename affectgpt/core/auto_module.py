"""The one file of code in an exported folder: transformers' Auto classes import this package through it."""

from __future__ import annotations

import os
from pathlib import Path

AUTO_MODULE = "affectgpt_auto"
_TEXT = '''"""Code of this folder is the package affectgpt (pip install affectgpt); nothing else is in this file."""

from affectgpt import AffectGPTConfig, AffectGPTForConditionalGeneration, AffectGPTProcessor

__all__ = ["AffectGPTConfig", "AffectGPTForConditionalGeneration", "AffectGPTProcessor"]
'''


def write_auto_module(folder: str | os.PathLike[str]) -> None:
    """Write it into a folder."""
    (Path(folder) / f"{AUTO_MODULE}.py").write_text(_TEXT, encoding="utf-8")
