"""A rehearsal at real size: Qwen2.5-7B, CLIP ViT-L/14 and HuBERT-large with random weights. Nothing is downloaded.

    python benchmarks/real_size.py                 on a CPU: weights of 17 GB written in the published layouts, then
                                                   train.py (steps, save), resume, inference_sample.py, in bfloat16
    python benchmarks/real_size.py --layers 8      with fewer layers of the LLM; without it as many as fit
    python benchmarks/real_size.py                 on a GPU: the benchmark; weights are made in its memory, stages in
                                                   order of worth: the published recipe, the fast one, answering a
                                                   data set with two checkpoints, a profile

The commands run as they are, on a drawn training set of 12 clips; only building the model is replaced (bfloat16 on a
CPU, where it would be float32 and 33 GB; weights made in place on a GPU). Results so far are in RECORD.part, which
becomes the record at the end. Memory of a CPU: ``peak`` with mapped files, which the system may drop, ``private``
without.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

import torch  # noqa: E402
from real_weights import architectures, make_on, write_folders  # noqa: E402
from records import RESULTS, Run, add_out_argument  # noqa: E402

RELEASED = ROOT / "train_configs" / "emercoarse_highlevelfilter4_outputhybird_bestsetup_bestfusion_lz.yaml"
# Bytes, on a CPU: encoders in bfloat16, connectors, optimizer and the process; what a layer keeps of a sample.
BESIDE, KEPT = 3.2e9, 9e7
HALF = ["run.amp_dtype=bfloat16", "model.llm_dtype=bfloat16", "model.encoder_dtype=bfloat16"]
CLIPS, CHECKPOINTS = 500, 2  # answered on a GPU


def fast_options() -> list[str]:
    """What the fast recipe changes, without its stored features, which this training set has none of."""
    from omegaconf import OmegaConf

    recipe = OmegaConf.load(RELEASED.with_name(f"{RELEASED.stem}_fast.yaml"))
    return [f"{part}.{key}={value}" for part in ("model", "run") for key, value in recipe[part].items()]


class Report:
    """Results by stage, in a JSON file that is whole after each of them."""

    def __init__(self, path: Path, **about: Any) -> None:
        self.path, self.content = path, {**about, "stages": {}}
        self._write()

    def add(self, stage: str, **values: Any) -> None:
        self.content["stages"][stage] = values
        self._write()
        shown = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in values.items()}
        print(f"{stage:<22}" + "  ".join(f"{key} {value}" for key, value in shown.items()), flush=True)

    def _write(self) -> None:
        from affectgpt.core.files import write_json

        write_json(self.path, self.content)


class Watch:
    """The most memory of a stage, GB: of a GPU what torch took; of a process all, and what it shares with no file."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.peak, self.private = device, 0.0, 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        self.began = time.perf_counter()
        self._thread.start()
        return self

    def _look(self) -> None:
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}
            self.peak = max(self.peak, found["VmRSS"] / 1e9)
            self.private = max(self.private, found["RssAnon"] / 1e9)
            if self._stop.wait(0.2):
                return

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self.began
        self._stop.set()
        self._thread.join()

    @property
    def memory(self) -> dict[str, float]:
        """As it is reported."""
        if self.device.type == "cuda":
            return {"peak_gb": torch.cuda.max_memory_allocated(self.device) / 1e9, "host_private_gb": self.private}
        return {"peak_gb": self.peak, "private_gb": self.private}


class Rehearsal:
    """The commands over one folder of models, with clocks at the places that count."""

    def __init__(self, work: Path, report: Report, args: argparse.Namespace, device: torch.device) -> None:
        self.work, self.report, self.args, self.device = work, report, args, device
        self.models = work / "models"
        self.steps: list[dict[str, Any]] = []
        self.clock = {"build": 0.0, "save": 0.0, "read": 0.0}

    def prepare(self, *, weights: bool, layers: int | None) -> None:
        """Model folders, clips, a configuration that extends the released one."""
        from drawn_clip import write_clip
        from training_recipe import write_training_set

        began = time.perf_counter()
        size = write_folders(self.models, size=self.args.size, layers=layers, weights=weights)
        self.report.add("make weights", seconds=time.perf_counter() - began, gb=size / 1e9)
        write_training_set(self.work / "dataset")
        write_clip(self.work / "clip.mp4")
        self.yaml = self.work / "rehearsal.yaml"
        self.yaml.write_text(
            f"extends: {RELEASED}\n"
            f"paths: {{models_root: {self.models}, dataset_root: {self.work / 'dataset'}, "
            f"output_root: {self.work / 'output'}, features_root: {self.work / 'features'}}}\n"
            f"run: {{device: {self.device.type}, num_workers: {self.args.workers}, max_epoch: 1, log_freq: 1, "
            f"iters_per_epoch: {self.args.steps}, batch_size_train: {self.args.batch}}}\n"
            f"inference: {{base_root: {self.work / 'results'}, max_new_tokens: {self.args.new_tokens}, "
            "ckpt_root: null, ckpt_name: null, test_epoch: 1, test_epochs: null, decoding: greedy}\n"
        )

    @contextmanager
    def clocks(self, build: Callable[..., Any]) -> Iterator[None]:
        """Put ``build`` in the place of ``build_model``, and clocks around building, steps, saving and reading."""
        from affectgpt.inference import session
        from affectgpt.modeling import build as building
        from affectgpt.training import run_state, step

        train = step.TrainStep.run

        def stepped(train_step: Any, fetched: Any, **options: Any) -> Any:
            shapes = [tuple(b.input_ids.shape) for b in fetched if b is not None]
            learnt = sum(train_step.objective.terms(b) for b in fetched)
            with self._timed() as seconds:
                done = train(train_step, fetched, **options)
            model = train_step.objective.model
            self.steps.append({"seconds": seconds[0], "samples": done.samples, "tokens": done.tokens, "learnt": learnt,
                               "shapes": shapes, "loss": done.loss, "model": model})  # fmt: skip
            return done

        def clocked(stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
            def timed(*arguments: Any, **options: Any) -> Any:
                with self._timed() as seconds:
                    result = work(*arguments, **options)
                self.clock[stage] += seconds[0]
                return result

            return timed

        places = [
            (building, "build_model", clocked("build", build)), (session, "build_model", clocked("build", build)),
            (step.TrainStep, "run", stepped),
            (run_state, "write_checkpoint", clocked("save", run_state.write_checkpoint)),
            (run_state, "read_checkpoint", clocked("read", run_state.read_checkpoint)),
        ]  # fmt: skip
        before = [getattr(owner, name) for owner, name, _ in places]
        for owner, name, new in places:
            setattr(owner, name, new)
        try:
            yield
        finally:
            for (owner, name, _), old in zip(places, before, strict=True):
                setattr(owner, name, old)

    @contextmanager
    def _timed(self) -> Iterator[list[float]]:
        seconds: list[float] = []
        self._wait()
        began = time.perf_counter()
        yield seconds
        self._wait()
        seconds.append(time.perf_counter() - began)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def train(self, stage: str, *options: str) -> None:
        """train.py; its figures, of steps without the first (warm-up) where there are several."""
        from affectgpt.cli.train import main
        from affectgpt.config.load import load_config
        from affectgpt.training.dry_run import Shape, peak_flop, step_flop, step_memory

        self.steps.clear()
        self.clock = dict.fromkeys(self.clock, 0.0)
        with Watch(self.device) as watch:
            status = main(["--cfg-path", str(self.yaml), *(["--options", *options] if options else [])])
        if status:
            raise SystemExit(f"{stage}: train.py ended with status {status}")
        warm = self.steps[min(self.args.warm_up, len(self.steps) - 1) :]
        seconds, tokens, learnt = (sum(step[key] for step in warm) for key in ("seconds", "tokens", "learnt"))
        samples = sum(step["samples"] for step in warm)
        flop = step_flop(self.steps[0].pop("model")).of(tokens=tokens, learnt=learnt) / seconds
        peak = peak_flop(self.device) or self.peak_of_this_cpu()
        config = load_config(self.yaml, options)
        largest = max((shape for step in self.steps for shape in step["shapes"]), key=lambda shape: shape[0] * shape[1])
        shape = Shape.of(
            samples=largest[0], length=largest[1], learnt=max(s["learnt"] for s in self.steps), run=config.run
        )
        estimate = step_memory(config, self.device, shape=shape)
        self.report.add(
            stage, seconds=watch.seconds, build_s=self.clock["build"], save_s=self.clock["save"],
            read_s=self.clock["read"], steps=len(warm), step_s=seconds / len(warm), samples_per_s=samples / seconds,
            tokens_per_s=tokens / seconds, tokens_per_sample=tokens / samples, tflops=flop / 1e12,
            mfu=flop / peak, loss=self.steps[-1]["loss"], estimated_gb=estimate.total / 1e9, **watch.memory,
        )  # fmt: skip
        self.steps.clear()

    def peak_of_this_cpu(self) -> float:
        """FLOP/s of a large product of matrices in bfloat16: what a CPU's utilisation is of."""
        side = 512  # a CPU without bfloat16 instructions needs a minute for 2048
        a = torch.randn(side, side).bfloat16()
        best = float("inf")
        for _ in range(4):
            began = time.perf_counter()
            a @ a
            best = min(best, time.perf_counter() - began)
        return 2 * side**3 / best

    def sample(self, stage: str) -> None:
        """inference_sample.py on a drawn clip, with the checkpoint that training wrote."""
        from affectgpt.cli.sample import main

        self.clock = dict.fromkeys(self.clock, 0.0)
        with Watch(self.device) as watch:
            status = main(["--cfg-path", str(self.yaml), "--video_path", str(self.work / "clip.mp4")])
        if status:
            raise SystemExit(f"{stage}: inference_sample.py ended with status {status}")
        answering = watch.seconds - self.clock["build"]
        self.report.add(stage, seconds=watch.seconds, build_s=self.clock["build"], answer_s=answering, **watch.memory)

    def answer(self, stage: str, *, clips: int) -> None:
        """inference_hybird.py over a data set with two checkpoints."""
        from tiny_world import write_corpus

        from affectgpt.cli.infer import main

        write_corpus(self.work / "clips", clips)
        self.clock = dict.fromkeys(self.clock, 0.0)
        options = [
            "inference.test_epoch=null",
            "inference.test_epochs=0-1",
            f"paths.dataset_root={self.work / 'clips'}",
        ]
        # Epoch 0 is written before the first one: two checkpoints of one run.
        [run] = sorted((self.work / "output" / "rehearsal").iterdir())[:1]
        with Watch(self.device) as watch:
            status = main(["--cfg-path", str(self.yaml), "--dataset", "OVMERDPlus", "--options", *options,
                           f"inference.ckpt_root={run}"])  # fmt: skip
        if status:
            raise SystemExit(f"{stage}: inference_hybird.py ended with status {status}")
        answering = watch.seconds - self.clock["build"]
        count = clips * CHECKPOINTS
        self.report.add(stage, seconds=watch.seconds, build_s=self.clock["build"], answers=count,
                        answers_per_s=count / answering, **watch.memory)  # fmt: skip

    def profile(self, stage: str, *options: str) -> None:
        """The kernels that the last step of a short run of the fast recipe spends its time in."""
        from torch.profiler import ProfilerActivity, profile

        from affectgpt.training import step

        run, seen = step.TrainStep.run, [0]
        table: list[str] = []

        def last(train_step: Any, fetched: Any, **rest: Any) -> Any:
            seen[0] += 1
            if seen[0] < self.args.steps:
                return run(train_step, fetched, **rest)
            with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
                done = run(train_step, fetched, **rest)
                self._wait()
            table.append(
                found.key_averages().table(sort_by="self_cuda_time_total", row_limit=20, max_name_column_width=70)
            )
            return done

        step.TrainStep.run = last  # type: ignore[method-assign]
        try:
            self.train(f"{stage}, its run", *options)
        finally:
            step.TrainStep.run = run  # type: ignore[method-assign]
        self.report.add(stage, table=table[0] if table else "")


def layers_that_fit(size: str, *, free: float, batch: int) -> int:
    """How many of the LLM's layers a step in bfloat16 has memory for on a CPU."""
    text = architectures(size, None)["Qwen2.5-7B-Instruct"]
    if size == "tiny":
        return text.num_hidden_layers
    D, F, V = text.hidden_size, text.intermediate_size, text.vocab_size
    kv = D * text.num_key_value_heads // text.num_attention_heads
    layer = 2 * (2 * D * D + 2 * D * kv + 3 * D * F) + batch * KEPT
    rest = 2 * 2 * V * D + BESIDE
    return max(0, min(text.num_hidden_layers, int((free - rest) / layer)))


def main(argv: list[str] | None = None) -> int:
    """Run the stages; 1 where not even two layers fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, metavar="N", help="of the LLM (default: all, on a CPU those that fit)")
    parser.add_argument("--size", choices=("real", "tiny"), default="real", help="tiny: to try the script itself")
    parser.add_argument("--steps", type=int, help="of an epoch (default: 2 on a CPU, 12 on a GPU)")
    parser.add_argument("--batch", type=int, help="samples (default: 1 on a CPU, 3 on a GPU, as published)")
    parser.add_argument("--new-tokens", type=int, default=8, help="of an answer; random weights never stop")
    parser.add_argument("--clips", type=int, help=f"that are answered (default: {CLIPS} on a GPU, none on a CPU)")
    parser.add_argument("--workers", type=int, default=0, help="of the loader")
    parser.add_argument("--weights", choices=("disk", "memory"), help="default: disk on a CPU, memory on a GPU")
    parser.add_argument(
        "--work", type=Path, help="folder for weights and runs, emptied afterwards (default: a new one)"
    )
    add_out_argument(parser, "real_size")
    args = parser.parse_args(argv)
    bench = Run(parser, args, places=("work",))

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    gpu = device.type == "cuda"
    args.steps = args.steps or (12 if gpu else 2)
    args.batch = args.batch or (3 if gpu else 1)
    args.warm_up = 4 if gpu else 0
    args.clips = args.clips if args.clips is not None else CLIPS * gpu

    from affectgpt.core.runtime import available_memory, setup_logging
    from affectgpt.modeling import build as building
    from affectgpt.training import dry_run as cost

    setup_logging()
    free = available_memory() or 0
    layers, all_layers = args.layers, architectures(args.size, None)["Qwen2.5-7B-Instruct"].num_hidden_layers
    if layers is None and not gpu:
        layers = layers_that_fit(args.size, free=free, batch=args.batch)
        if layers < 2:
            print(f"error: {free / 1e9:.1f} GB are free; two layers and a step need more", file=sys.stderr)
            return 1
    layers = layers or all_layers
    work = args.work or Path(tempfile.mkdtemp(prefix="real-size-"))
    work.mkdir(parents=True, exist_ok=True)
    try:
        part = (args.out or RESULTS / "real_size.json").with_suffix(".json.part")
        report = Report(
            part, device=torch.cuda.get_device_name(device) if gpu else "cpu", threads=torch.get_num_threads(),
            layers=layers, of_layers=all_layers, batch=args.batch, new_tokens=args.new_tokens, free_gb=free / 1e9,
        )  # fmt: skip
        print(f"{layers} of {all_layers} layers on {device}; {free / 1e9:.1f} GB of the host's memory are free")
        in_memory = (args.weights or ("memory" if gpu else "disk")) == "memory"
        rehearsal = Rehearsal(work, report, args, device)
        rehearsal.prepare(weights=not in_memory, layers=layers)
        load, weight_dtype = building.build_model, building.weight_dtype

        def build(config: Any, **options: Any) -> Any:
            if in_memory:
                kept = {key: options[key] for key in ("tokenizer", "encoders") if key in options}
                return make_on(options["device"], config, **{"encoders": True, **kept})
            return load(config, **options, dtype=torch.bfloat16)

        def half(config: Any, name: str, parameter: torch.nn.Parameter, where: torch.device) -> torch.dtype:
            frozen = name.startswith(("visual_encoder.", "acoustic_encoder.", "llm.")) and not parameter.requires_grad
            return torch.bfloat16 if frozen else torch.float32

        if not gpu:
            building.weight_dtype = cost.weight_dtype = half  # the check of memory counts what is built
        try:
            with rehearsal.clocks(build):
                fast = fast_options()
                if gpu:
                    rehearsal.train("published")
                    rehearsal.train("published, bfloat16", *HALF)
                    rehearsal.train("fast, encoders in the step", *fast)
                    rehearsal.train("fast, 24 samples a step", *fast, "run.batch_size_train=24")
                else:
                    rehearsal.train("train")
                    rehearsal.train("resume", "run.resume_ckpt_path=auto", "run.max_epoch=2")
                    rehearsal.sample("inference_sample")
                if args.clips:
                    rehearsal.answer("answering", clips=args.clips)
                if gpu:
                    rehearsal.profile("profile", *fast)
                    rehearsal.train("resume", "run.resume_ckpt_path=auto", "run.max_epoch=2")
                    rehearsal.sample("inference_sample")
        finally:
            building.weight_dtype = cost.weight_dtype = weight_dtype
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if bench.record("real_size", report.content, model=args.size, device=str(device)):
        part.unlink()
    return 0


if __name__ == "__main__":
    from affectgpt.cli.common import run_cli

    sys.exit(run_cli(main))
