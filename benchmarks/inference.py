"""Batched inference against one clip at a time, and memory against the number of clips.

    python benchmarks/inference.py                  ratios on this CPU, models of medium size, random weights
    python benchmarks/inference.py --memory         peak memory of 64 and of 2,610 clips, tiny models
    python benchmarks/inference.py --size real --device cuda --cfg-path FILE   tokens/s with real model folders

Both ways run in the same process, with the same model and clips. "One by one" is the published way: media read,
encoders run (transformers' own convolutions) and one answer generated per clip, question and checkpoint; for seven
checkpoints it costs seven times as much. Reading a checkpoint counts in neither. Processor seconds stand beside wall
seconds, for busy machines.
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

TOKENS = {"labels": 24, "description": 120}  # of an answer; random weights never stop
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
    """Seconds of both ways for each question with one checkpoint, for both questions, and for seven checkpoints."""
    import torch

    from affectgpt.inference.asker import Asker
    from affectgpt.prompts.questions import render_question

    torch.set_num_threads(threads)
    questions = {"labels": render_question("ovlabel"), "description": render_question("description")}
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(Path(folder), n_clips=n_clips, medium=True)
        checkpoints = world.checkpoints(f"inference.test_epochs=11-{10 + CHECKPOINTS}")

        def measure(name: str, used, asked, *options: str, published: bool = False) -> tuple[float, float]:
            """Wall and processor seconds for all clips. What is built once is not measured."""
            seconds = [0.0, 0.0]
            benchmark = world.benchmark(
                Path(folder) / name, "inference.on_error=raise", *options, keep_features=not published
            )
            askers = {}
            for question in asked:
                config = world.config(*options, f"inference.max_new_tokens={TOKENS[question]}")
                askers[question] = Asker(config, device=benchmark.device)
                if published:
                    speech = askers[question].model.acoustic_encoder.model
                    speech.feature_extractor = speech.feature_extractor.original
            for question in asked:
                benchmark.asker = askers[question]
                for checkpoint in used:
                    benchmark.asker.use(checkpoint.path)
                    wall, processor = time.perf_counter(), time.process_time()
                    root = str(Path(folder) / name / question)
                    benchmark.run("OVMERDPlus", checkpoint, question=questions[question], base_root=root)
                    seconds[0] += time.perf_counter() - wall
                    seconds[1] += time.process_time() - processor
            return seconds[0], seconds[1]

        single = ("inference.batch_size=1", "run.num_workers=0")
        batched = ("inference.batch_size=16", "run.num_workers=0")
        measure("warm", checkpoints[:1], ["labels"], *batched)
        one = {q: measure(f"one-{q}", checkpoints[:1], [q], *single, published=True) for q in questions}
        ours = {q: measure(f"ours-{q}", checkpoints[:1], [q], *batched) for q in questions}
        both = measure("both", checkpoints[:1], list(questions), *batched)
        seven = measure("seven", checkpoints, ["labels"], *batched)

    def row(slow: tuple[float, ...], fast: tuple[float, ...]) -> dict:
        return {
            clock: {
                "one by one": round(slow[at], 2),
                "batched": round(fast[at], 2),
                "ratio": round(slow[at] / fast[at], 2),
            }
            for at, clock in enumerate(("wall seconds", "processor seconds"))
        }

    labels, description = one["labels"], one["description"]
    return {
        "clips": n_clips,
        "threads": threads,
        "tokens": TOKENS,
        "labels, 1 checkpoint": row(labels, ours["labels"]),
        "description, 1 checkpoint": row(description, ours["description"]),
        "both questions, 1 checkpoint": row(tuple(map(sum, zip(labels, description, strict=True))), both),
        f"labels, {CHECKPOINTS} checkpoints": row(tuple(CHECKPOINTS * value for value in labels), seven),
    }


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
