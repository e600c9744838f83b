"""A checkpoint as safetensors and a peft adapter (or a merged LLM), and back."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from affectgpt.cli.common import add_imports_argument, run_cli


def build_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = argparse.ArgumentParser(
        prog="affectgpt export",
        description="Write a checkpoint as a folder that transformers and peft load by themselves: "
        "connectors.safetensors and adapter/ (LoRA), or llm/ (the LLM with LoRA merged). From such a folder to a .pth "
        "it goes as well.",
    )
    parser.add_argument("--checkpoint", required=True, metavar="PATH", help="a .pth, or a folder written by export")
    parser.add_argument("--out", required=True, metavar="PATH", help="a new folder, or a new FILE.pth to go back")
    parser.add_argument("--merge", action="store_true", help="merge LoRA into the LLM's weights and write them")
    add_imports_argument(parser)
    parser.add_argument(
        "--hf", action="store_true",
        help="write the whole model as a folder that transformers loads: AutoModel… and AutoProcessor.from_pretrained",
    )  # fmt: skip
    parser.add_argument("--adapter", action="store_true", help="with --hf: LoRA beside the weights (peft), not merged")
    parser.add_argument(
        "--cfg-path", metavar="FILE", help="with --hf: the checkpoint's configuration (default: the one inside it)"
    )
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="override any of its keys")
    parser.add_argument("--mode", metavar="MODE", help="with --hf: input mode (default: that of the training data)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="with --hf: of the weights (default: as the LLM's)"
    )
    parser.add_argument("--scores", metavar="JSON", help="with --hf: scores for the model card, from score --json")
    parser.add_argument("--llm", metavar="FOLDER", help="the LLM's folder (default: where its configuration has it)")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run the model code that an LLM's folder brings (Baichuan2)"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Parse, convert, say where the result is."""
    args = build_parser().parse_args(argv)
    checkpoint, out = Path(args.checkpoint), Path(args.out)

    from affectgpt.core.errors import CheckpointError, ConfigError
    from affectgpt.core.registry import import_files

    if out.exists():
        raise ConfigError(f"--out {out}: exists already; name a new one")
    import_files(args.imports)
    if args.hf:
        return _export_hf(args, checkpoint, out)
    if args.adapter or args.cfg_path or args.scores or args.mode or args.dtype:
        raise ConfigError("--adapter, --cfg-path, --mode, --dtype and --scores go with --hf")

    from affectgpt.modeling.checkpoint import read_checkpoint, write_checkpoint
    from affectgpt.modeling.export import export_folder, is_merged

    content = read_checkpoint(checkpoint)
    if out.suffix == ".pth":
        if args.merge:
            raise ConfigError("--merge writes a folder, not a .pth")
        if checkpoint.is_dir() and is_merged(checkpoint):
            raise CheckpointError(
                f"{checkpoint}: its LoRA is merged into llm/ and cannot be taken out again; export without --merge"
            )
        write_checkpoint(out, content)
    else:
        row, folder = _llm_of(content, llm=args.llm, read=args.merge, trusted=args.trust_remote_code)
        export_folder(content, out, row=row, llm=folder, merge=args.merge)
    print(out)
    return 0


def _export_hf(args: argparse.Namespace, checkpoint: Path, out: Path) -> int:
    from affectgpt.config.load import load_config, saved_config
    from affectgpt.core.errors import ConfigError

    if args.merge:
        raise ConfigError("--hf merges LoRA by itself; --adapter keeps it apart")
    if args.options and not args.cfg_path:
        raise ConfigError("--options go with --cfg-path")
    config = load_config(args.cfg_path, args.options) if args.cfg_path else None

    import torch

    from affectgpt.evaluation.report import headline
    from affectgpt.inference.hub import export_hf
    from affectgpt.modeling.checkpoint import read_checkpoint

    if config is None:
        config = saved_config(read_checkpoint(checkpoint).get("config"), source=checkpoint)
    if args.llm:
        folders = {**config.paths.folders, config.model.llama_model: args.llm}
        config = replace(config, paths=replace(config.paths, folders=folders))
    dtype = None if args.dtype is None else getattr(torch, args.dtype)
    scores = None if args.scores is None else headline(Path(args.scores), checkpoint=checkpoint.stem)
    print(export_hf(config, checkpoint, out, mode=args.mode, adapter=args.adapter, dtype=dtype, scores=scores))
    return 0


def _llm_of(content: dict, *, llm: str | None, read: bool, trusted: bool):
    """The LLM's row and folder, as the checkpoint's configuration names them."""
    from affectgpt.config.schema import Config, ModelConfig, PathsConfig
    from affectgpt.core.errors import ConfigError
    from affectgpt.encoders.llm import get_llm, llm_folder

    saved = content.get("config") or {}
    name = (saved.get("model") or {}).get("llama_model", ModelConfig.llama_model)
    row = get_llm(name)
    if read and row.remote_code and not trusted:
        raise ConfigError(f"{name} is code in its own folder; read that code, then allow it with --trust-remote-code")
    paths = saved.get("paths") or {}
    config = Config(
        name="export",
        model=ModelConfig(llama_model=name),
        paths=PathsConfig(
            models_root=paths.get("models_root", PathsConfig.models_root),
            folders={**(paths.get("folders") or {}), **({name: llm} if llm else {})},
        ),
    )
    return row, llm_folder(config, key="--llm" if llm else "model.llama_model", must_exist=read)


if __name__ == "__main__":
    sys.exit(run_cli(main))
