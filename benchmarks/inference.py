"""Batched inference against one clip at a time, and memory against the number of clips.

    python benchmarks/inference.py                  ratios on this CPU, models of medium size, random weights
    python benchmarks/inference.py --memory         peak memory of 64 and of 2,610 clips, tiny models
    python benchmarks/inference.py --size real --device cuda --cfg-path FILE   tokens/s with real model folders

Both ways run in the same process, with the same model and clips. "One by one" is the published way: media read,
encoders run and one answer generated per clip and checkpoint; for seven checkpoints it costs seven times as much.
Answers are as long as label answers are (24 tokens). Processor seconds stand beside wall seconds, for busy machines.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "inference")]

TOKENS = 24
CHECKPOINTS = 7


def make_medium_models(root: Path) -> Path:
    """Qwen2 512 wide with 8 layers, CLIP and HuBERT 384 wide with 6 layers: large enough that arithmetic counts."""
    import torch
    from tiny import make_tiny_models, make_tokenizer
    from transformers import CLIPConfig, CLIPModel, HubertConfig, HubertModel, Qwen2Config, Qwen2ForCausalLM

    make_tiny_models(root)
    torch.manual_seed(0)
    CLIPModel(
        CLIPConfig(
            text_config={"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 60},
            vision_config={"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6,
                           "num_hidden_layers": 6, "patch_size": 16, "image_size": 224},
            projection_dim=384,
        )
    ).save_pretrained(root / "clip-vit-large-patch14")  # fmt: skip
    HubertModel(
        HubertConfig(
            hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1536,
            feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True,
        )
    ).save_pretrained(root / "chinese-hubert-large")  # fmt: skip
    folder = root / "Qwen2.5-7B-Instruct"
    generation = (folder / "generation_config.json").read_text("utf-8")
    make_tokenizer(folder)
    Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
            num_key_value_heads=8, vocab_size=1600, max_position_embeddings=4096, tie_word_embeddings=False,
        )
    ).save_pretrained(folder)  # fmt: skip
    (folder / "generation_config.json").write_text(generation, "utf-8")
    return root


def make_world(root: Path, *, n_clips: int, medium: bool):
    """Models, clips and checkpoints: see tests/inference/tiny_world.py."""
    from tiny import make_tiny_models
    from tiny_world import World, write_corpus, write_run

    models = (make_medium_models if medium else make_tiny_models)(root / "models")
    world = World(root, models)
    write_corpus(root / "dataset", n_clips)
    write_run(world.run_folder, world.config(), tuple(range(11, 11 + (CHECKPOINTS if medium else 1))))
    return world


def ratios(n_clips: int, threads: int) -> dict:
    """Seconds per clip of both ways, for one checkpoint and for seven."""
    import torch

    from affectgpt.inference.asker import Asker

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(Path(folder), n_clips=n_clips, medium=True)
        epochs = f"inference.test_epochs=11-{10 + CHECKPOINTS}"
        checkpoints = world.checkpoints(epochs)
        settings = (f"inference.max_new_tokens={TOKENS}", "inference.on_error=raise")

        def measure(name: str, used, *options: str, keep_features: bool, known: bool = False) -> tuple[float, float]:
            benchmark = world.benchmark(Path(folder) / name, *settings, *options, keep_features=keep_features)
            benchmark.asker = Asker(benchmark.config, device=benchmark.device)  # building it is not measured
            if known:  # the encoders ran for another checkpoint
                benchmark.run("OVMERDPlus", checkpoints[-1])
            wall, processor = time.perf_counter(), time.process_time()
            for checkpoint in used:
                benchmark.run("OVMERDPlus", checkpoint)
            return time.perf_counter() - wall, time.process_time() - processor

        single = ("inference.batch_size=1", "run.num_workers=0")
        batched = ("inference.batch_size=16", "run.num_workers=0")
        measure("warm", checkpoints[:1], *batched, keep_features=False)
        one = measure("a", checkpoints[:1], *single, keep_features=False)
        seconds = {
            "one by one, 1 checkpoint": one,
            "batched, 1 checkpoint": measure("b", checkpoints[:1], *batched, keep_features=False),
            "batched, 1 checkpoint, encoder outputs known": measure(
                "d", checkpoints[:1], *batched, keep_features=True, known=True
            ),
            f"one by one, {CHECKPOINTS} checkpoints": tuple(CHECKPOINTS * value for value in one),
            f"batched, {CHECKPOINTS} checkpoints": measure("c", checkpoints, *batched, keep_features=True),
        }
    result: dict = {"clips": n_clips, "threads": threads}
    for at, clock in enumerate(("wall", "processor")):
        a, b, known, c, d = (value[at] for value in seconds.values())
        result[clock] = {
            **{name: round(value[at], 2) for name, value in seconds.items()},
            "ratio, 1 checkpoint": round(a / b, 2),
            "ratio, 1 checkpoint, encoder outputs known": round(a / known, 2),
            f"ratio, {CHECKPOINTS} checkpoints": round(c / d, 2),
        }
    return result


def memory_of(n_clips: int) -> None:
    """Answer so many clips (few files under many names) with tiny models; print the peak memory in MB."""
    import csv
    import resource

    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        world = make_world(root, n_clips=4, medium=False)
        folder = root / "dataset" / "ovmerdplus-process"
        names = [f"clip_{i:06d}" for i in range(n_clips)]
        for i, clip in enumerate(names):
            for place, suffix in (("audio", ".wav"), ("openface_face", ".npy")):
                os.link(folder / place / f"sample_{i % 4:08d}{suffix}", folder / place / f"{clip}{suffix}")
        for file, column in (("ovlabel.csv", "openset"), ("subtitle_eng.csv", "sentence")):
            with (folder / file).open("w", encoding="utf-8", newline="") as handle:
                csv.writer(handle).writerows([("name", column), *((clip, "[happy]") for clip in names)])
        benchmark = world.benchmark(root / "out", "inference.max_new_tokens=4", "inference.batch_size=16",
                                    keep_features=True)  # fmt: skip
        for checkpoint in world.checkpoints():
            benchmark.run("OVMERDPlus", checkpoint)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def memory() -> dict:
    """Peak memory of a process for few and for many clips."""
    found = {}
    for n_clips in (64, 2610):
        command = [sys.executable, __file__, "--memory-of", str(n_clips)]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        found[f"{n_clips} clips"] = f"{int(result.stdout.split()[-1])} MB"
    return found


def real(cfg_path: str, device: str, engine: str, n_prompts: int) -> dict:
    """Tokens/s of an engine with the model folders of a configuration; encoder outputs are drawn at random."""
    import torch

    from affectgpt.config.load import load_config
    from affectgpt.core.types import Sample
    from affectgpt.inference.asker import Asker, inference_device
    from affectgpt.prompts.modes import get_mode

    config = load_config(cfg_path, [f"run.device={device}", f"inference.engine={engine}", "inference.batch_size=null"])
    asker = Asker(config, device=inference_device(config))
    widths = {"audio": asker.model.acoustic_encoder.width}

    def drawn(modality):
        width = widths.get(modality.value, asker.model.visual_encoder.width)
        return lambda sample: (torch.randn(8, width), ())

    features = {modality: drawn(modality) for modality in get_mode(asker.mode).media}
    samples = [Sample(name=str(i), dataset="random", subtitle="I did not think so. " * 3) for i in range(n_prompts)]
    dataset = asker.dataset(samples, question="How does he feel?", features=features)
    examples = [dataset[i] for i in range(n_prompts)]
    size = asker.batch_size(len(examples[0].input_ids))
    asker.answer(examples[:2], seeds=[0, 1])
    started, tokens = time.perf_counter(), 0
    for at in range(0, n_prompts, size):
        group = examples[at : at + size]
        tokens += sum(answer.tokens for answer in asker.answer(group, seeds=list(range(len(group)))))
    seconds = time.perf_counter() - started
    return {"engine": engine, "batch": size, "answers/s": n_prompts / seconds, "tokens/s": tokens / seconds}


def main() -> None:
    """Parse, measure, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--size", choices=("medium", "real"), default="medium")
    parser.add_argument("--cfg-path")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--engine", default="transformers")
    parser.add_argument("--prompts", type=int, default=512)
    args = parser.parse_args()
    if args.memory_of:
        memory_of(args.memory_of)
    elif args.memory:
        print(json.dumps(memory(), indent=1))
    elif args.size == "real":
        print(json.dumps(real(args.cfg_path, args.device, args.engine, args.prompts), indent=1))
    else:
        print(json.dumps(ratios(args.clips, args.threads), indent=1))


if __name__ == "__main__":
    main()
