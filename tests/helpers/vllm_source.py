"""vLLM's source, parsed and never imported: what the calls of our clients and engines are checked against."""

from __future__ import annotations

import ast
import os
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest


def vllm_source(name: str) -> ast.Module:
    """One file of vLLM, from the wheel that VLLM_WHEEL names or from the installed package; nothing is imported."""
    wheel = os.environ.get("VLLM_WHEEL")
    if wheel:
        with zipfile.ZipFile(wheel) as archive:
            return ast.parse(archive.read(f"vllm/{name}"))
    spec = find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("vllm is not installed and VLLM_WHEEL names no wheel of it (pip download --no-deps vllm)")
    return ast.parse((Path(spec.submodule_search_locations[0]) / name).read_text(encoding="utf-8"))


def class_of(tree: ast.Module, name: str) -> ast.ClassDef:
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)


def parameters_of(tree: ast.Module, name: str, method: str) -> set[str]:
    found = next(n for n in class_of(tree, name).body if isinstance(n, ast.FunctionDef) and n.name == method)
    return {argument.arg for argument in found.args.args + found.args.kwonlyargs}


def fields_of(tree: ast.Module, name: str) -> set[str]:
    return {n.target.id for n in class_of(tree, name).body if isinstance(n, ast.AnnAssign)}
