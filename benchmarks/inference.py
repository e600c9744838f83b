"""Batched inference against one clip at a time, and memory against the number of clips.

    python benchmarks/inference.py                  ratios on this CPU, models of medium size, random weights
    python benchmarks/inference.py --memory         peak memory of 64 and of 2,610 clips, tiny models
    python benchmarks/inference.py --size real      tokens/s of an engine on a GPU, published sizes, random weights,
                                                    and how many answers change with the batch

Both ways run in the same process, with the same model and clips. "One by one" is the published way: media read,
encoders run and one answer generated (with transformers' own convolutions) per clip, question and checkpoint;
for seven checkpoints it costs seven times as much. Reading a checkpoint counts in neither. Processor seconds stand
beside wall seconds, for busy machines.
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
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

from records import Run, add_out_argument  # noqa: E402
from sizes import SIZES  # noqa: E402

TOKENS = {"labels": 24, "description": 120}  # of an answer; random weights never stop
CHECKPOINTS = 7
N_ALONE = 64  # answers that are asked for again one by one: outside float32 on a CPU some differ


def make_models(root: Path, size: str, *, device: str = "cpu") -> Path:
    """Folders with random weights: medium, large enough that arithmetic counts, or of the published sizes (17 GB)."""
    import torch
    from tiny import make_tiny_models, make_tokenizer
    from transformers import CLIPConfig, CLIPModel, HubertConfig, HubertModel, Qwen2Config, Qwen2ForCausalLM

    make_tiny_models(root)
    numbers = SIZES[size]
    folder = root / "Qwen2.5-7B-Instruct"
    generation = (folder / "generation_config.json").read_text("utf-8")
    make_tokenizer(folder)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32 if size == "medium" else torch.bfloat16)
    with torch.device(device):
        text = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 60}
        made = {
            "clip-vit-large-patch14": CLIPModel(
                CLIPConfig(text_config=text, vision_config=numbers.vision, projection_dim=numbers.projection)
            ),
            "chinese-hubert-large": HubertModel(HubertConfig(**numbers.speech)),
            folder.name: Qwen2ForCausalLM(
                Qwen2Config(max_position_embeddings=4096, tie_word_embeddings=False, **numbers.llm)
            ),
        }
    torch.set_default_dtype(torch.float32)
    for name, model in made.items():
        model.save_pretrained(root / name)
    (folder / "generation_config.json").write_text(generation, "utf-8")
    return root


def make_world(root: Path, *, n_clips: int, models: Path, n_checkpoints: int = 1):
    """Clips and checkpoints: see tests/helpers/tiny_world.py."""
    from tiny_world import World, write_corpus, write_run

    world = World(root, models)
    write_corpus(root / "dataset", n_clips)
    write_run(world.run_folder, world.config(), tuple(range(11, 11 + n_checkpoints)))
    return world


def ratios(n_clips: int, threads: int) -> dict:
    """Seconds of both ways for each question with one checkpoint, for both questions, and for seven checkpoints."""
    import torch

    from affectgpt.inference.session import GenerationSession
    from affectgpt.processing.questions import render_question

    torch.set_num_threads(threads)
    questions = {"labels": render_question("ovlabel"), "description": render_question("description")}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        models = make_models(root / "models", "medium")
        world = make_world(root, n_clips=n_clips, models=models, n_checkpoints=CHECKPOINTS)
        checkpoints = world.checkpoints(f"inference.test_epochs=11-{10 + CHECKPOINTS}")

        def measure(name: str, used, asked, *options: str, published: bool = False) -> tuple[float, float]:
            """Wall and processor seconds for all clips. What is built once is not measured."""
            seconds = [0.0, 0.0]
            benchmark = world.benchmark(Path(folder) / name, "inference.on_error=raise", *options)
            sessions = {}
            for question in asked:
                config = world.config(*options, f"inference.max_new_tokens={TOKENS[question]}")
                sessions[question] = GenerationSession.from_config(config, device=benchmark.device)
                if published:
                    speech = sessions[question].model.acoustic_encoder.model
                    speech.feature_extractor = speech.feature_extractor.original
            for question in asked:
                benchmark.session = sessions[question]
                for checkpoint in used:
                    benchmark.session.use(checkpoint.path)
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
        found = {}
        for at, clock in enumerate(("wall", "processor")):
            found[f"{clock}_seconds"] = {"one_by_one": slow[at], "batched": fast[at]}
            found[f"{clock}_ratio"] = slow[at] / fast[at]
        return found

    labels, description = one["labels"], one["description"]
    return {
        "tokens": TOKENS,
        "checkpoints": CHECKPOINTS,
        "labels": row(labels, ours["labels"]),
        "description": row(description, ours["description"]),
        "both_questions": row(tuple(map(sum, zip(labels, description, strict=True))), both),
        "labels_of_all_checkpoints": row(tuple(CHECKPOINTS * value for value in labels), seven),
    }


def memory_of(n_clips: int) -> None:
    """Answer so many clips (few files under many names) with tiny models; print the peak memory in MB."""
    import csv
    import resource

    import torch
    from tiny import make_tiny_models

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        world = make_world(root, n_clips=4, models=make_tiny_models(root / "models"))
        folder = root / "dataset" / "ovmerdplus-process"
        names = [f"clip_{i:06d}" for i in range(n_clips)]
        for i, clip in enumerate(names):
            for place, suffix in (("audio", ".wav"), ("openface_face", ".npy")):
                os.link(folder / place / f"sample_{i % 4:08d}{suffix}", folder / place / f"{clip}{suffix}")
        for file, column in (("ovlabel.csv", "openset"), ("subtitle_eng.csv", "sentence")):
            with (folder / file).open("w", encoding="utf-8", newline="") as handle:
                csv.writer(handle).writerows([("name", column), *((clip, "[happy]") for clip in names)])
        benchmark = world.benchmark(root / "out", "inference.max_new_tokens=4", "inference.batch_size=16")
        for checkpoint in world.checkpoints():
            benchmark.run("OVMERDPlus", checkpoint)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 10**6)


def memory() -> dict:
    """Peak memory of a process for few and for many clips."""
    found = []
    for n_clips in (64, 2610):
        command = [sys.executable, __file__, "--memory-of", str(n_clips)]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found.append({"clips": n_clips, "peak_mb": int(result.stdout.split()[-1])})
    return {"peaks": found}


def throughput(cfg_path: str | None, size: str, *, device: str, engine: str, n_prompts: int) -> dict:
    """Tokens/s of an engine, with the model folders of a configuration or random weights; media are not read."""
    options = [f"run.device={device}", f"inference.engine={engine}", "inference.batch_size=null"]
    if cfg_path is not None:
        return measure_throughput(cfg_path, options, n_prompts=n_prompts)
    with tempfile.TemporaryDirectory() as folder:
        from tiny_world import World

        world = World(Path(folder), make_models(Path(folder) / "models", size, device=device))
        options += [f"inference.max_new_tokens={TOKENS['labels']}"]
        return measure_throughput(str(world.yaml), options, n_prompts=n_prompts)


def measure_throughput(cfg_path: str, options: list[str], *, n_prompts: int) -> dict:
    """Answers and tokens per second; encoder outputs are drawn at random."""
    import torch

    from affectgpt.config.load import load_config
    from affectgpt.core.types import Sample
    from affectgpt.inference.session import GenerationSession
    from affectgpt.processing.modes import get_mode

    config = load_config(cfg_path, options)
    session = GenerationSession.from_config(config)
    widths = {"audio": session.model.acoustic_encoder.width}

    def drawn(modality):
        width = widths.get(modality.value, session.model.visual_encoder.width)
        return lambda sample: (torch.randn(8, width), ())

    features = {modality: drawn(modality) for modality in get_mode(session.mode).media}
    samples = [Sample(name=str(i), dataset="random", subtitle="I did not think so. " * 3) for i in range(n_prompts)]
    examples = [session.processor(s, question="How does he feel?", features=features) for s in samples]
    size = session.batch_size(len(examples[0].input_ids))
    session.generate(examples[:2], seeds=[0, 1])
    started, answers = time.perf_counter(), []
    for at in range(0, n_prompts, size):
        answers += session.generate(examples[at : at + size], seeds=list(range(at, min(at + size, n_prompts))))
    seconds = time.perf_counter() - started
    alone = [session.generate([examples[i]], seeds=[i])[0] for i in range(min(n_prompts, N_ALONE))]
    differing = sum(a.text != b.text for a, b in zip(alone, answers, strict=False))
    return {
        "engine": config.inference.engine,
        "batch": size,
        "answers_per_second": n_prompts / seconds,
        "tokens_per_second": sum(answer.tokens for answer in answers) / seconds,
        "asked_alone": len(alone),
        "differing_from_alone": differing,
    }


def main() -> None:
    """Parse, measure, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--throughput", action="store_true", help="tokens/s instead of ratios")
    parser.add_argument("--size", choices=tuple(SIZES), default="medium", help="real: always with --throughput")
    parser.add_argument("--cfg-path", help="a configuration with model folders, instead of random weights")
    parser.add_argument("--device", help="of --throughput (cuda); all else is measured on the CPU")
    parser.add_argument("--engine", default="transformers", help="of --throughput")
    parser.add_argument("--prompts", type=int, default=512, help="of --throughput")
    add_out_argument(parser, "inference[_memory|_throughput]")
    args = parser.parse_args()
    if args.memory_of:
        memory_of(args.memory_of)
        return
    throughput_asked = args.throughput or args.size == "real"
    if args.memory:
        name, model, device, full = "inference_memory", "tiny", "cpu", {"memory": True}
    elif throughput_asked:
        name, model, device = "inference_throughput", args.size, args.device or "cuda"
        full = {"size": "real", "throughput": args.throughput}
    else:
        name, model, device, full = "inference", "medium", "cpu", {}
    bench = Run(parser, args, data=("cfg_path",), full=full)
    if args.memory:
        numbers = memory()
    elif throughput_asked:
        numbers = throughput(args.cfg_path, args.size, device=device, engine=args.engine, n_prompts=args.prompts)
    else:
        numbers = ratios(args.clips, args.threads)
    print(json.dumps(numbers, indent=1))
    bench.record(name, numbers, model=model, device=device)


if __name__ == "__main__":
    main()
