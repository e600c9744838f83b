"""Samples per second of a training step, against the published recipe's way of taking it.

    python benchmarks/training.py                      medium model on the CPU, both ways in one process
    python benchmarks/training.py --size real          Qwen2.5-7B, CLIP-L, HuBERT-L with random weights, on a GPU

The published way: both encoders inside the step, the speech encoder in train mode (its feature extractor then asks for
a gradient, so that backward runs through all of it), batches padded to the longest sample, logits of every token. Ours:
encoders in eval mode without a gradient, or their outputs read from a feature store on disk; samples packed, logits of
learnt tokens. Both take the same batches of the same model; the loss before the first step is compared.

On a CPU two threads are used, and processor seconds are given beside seconds: they hardly change when something else
uses the machine. Medians over the steps, the first one of each way left out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Threads that spin are quicker on a machine of their own and ruinous on a shared one.
os.environ.setdefault("OMP_WAIT_POLICY", "ACTIVE" if os.getloadavg()[0] < 0.7 else "PASSIVE")

import torch
from records import Run, add_out_argument
from sizes import SIZES, Size

from affectgpt.config.schema import RunConfig
from affectgpt.core.types import IGNORE_INDEX, Batch, Modality, Sample
from affectgpt.encoders.clip import ClipEncoder
from affectgpt.encoders.llm import get_llm
from affectgpt.encoders.speech import HubertEncoder
from affectgpt.modeling.configuration_affectgpt import AffectGPTConfig
from affectgpt.modeling.lora import add_lora
from affectgpt.modeling.modeling_affectgpt import AffectGPTForConditionalGeneration
from affectgpt.processing.collate import layout_of
from affectgpt.processing.features import FeatureReader, FeatureWriter
from affectgpt.training.dry_run import peak_flop, step_flop
from affectgpt.training.objectives.sft import SupervisedObjective
from affectgpt.training.optim import build_optimizer
from affectgpt.training.step import TrainStep, prepare_llm

# Of the published step on the medium model (batch 3, 153 tokens, two threads), ms: the shape that its arm must have.
PUBLISHED_STAGES = {"encode video": 606, "encode audio": 2278, "LLM forward": 225, "backward": 4246, "optimizer": 7}
LENGTH = 153  # tokens of the longest sample of a batch
TARGETS = {"ours, encoders in the step": 2.0, "ours, feature store": 12.0}  # times the published way
TARGET_SAMPLES = 45.0  # samples/s on one H200, --size real; the published 4.6 are those of an A100
THREADS = 2
WARM_UP = 1


def build(size: Size, *, device: torch.device, dtype: torch.dtype, rank: int) -> AffectGPTForConditionalGeneration:
    """The released recipe (attention everywhere) with random weights, made on ``device``."""
    from transformers import CLIPConfig, CLIPModel, HubertConfig, HubertModel, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with device:
        llm = Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=False, **size.llm)).requires_grad_(False)
        text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        clip = ClipEncoder(
            CLIPModel(CLIPConfig(text_config=text, vision_config=size.vision, projection_dim=size.projection))
        )
        hubert = HubertEncoder(HubertModel(HubertConfig(**size.speech)))
    torch.set_default_dtype(torch.float32)
    llm = add_lora(llm, row=get_llm("Qwen25"), rank=rank)
    vocabulary = size.llm["vocab_size"]
    config = AffectGPTConfig(
        llm.config, lora_r=rank, placeholder_ids={m.value: vocabulary - 5 + i for i, m in enumerate(Modality)}
    )
    with device:
        made = AffectGPTForConditionalGeneration(config, llm=llm, visual_encoder=clip, acoustic_encoder=hubert)
        return made.to(device)


def make_batches(
    model: AffectGPTForConditionalGeneration,
    *,
    count: int,
    size: int,
    vocabulary: int,
    device: torch.device,
    packing: int = 0,
) -> list[Batch]:
    """Random batches whose longest sample has LENGTH tokens: prompts of about 110 tokens, half of the answers label
    lists, half descriptions."""
    draw = torch.Generator().manual_seed(1)
    eos = vocabulary - 6
    batches = []
    for number in range(count):
        rows = []
        for at in range(size):
            prompt = int(torch.randint(95, 110, (1,), generator=draw))
            low, high = (8, 20) if torch.rand(1, generator=draw) < 0.5 else (25, LENGTH - 110)
            answer = int(torch.randint(low, high, (1,), generator=draw)) if at else LENGTH - prompt
            ids = torch.randint(10, eos, (prompt + answer,), generator=draw)
            for place, modality in enumerate((Modality.MULTI, Modality.AUDIO, Modality.FACE)):
                ids[5 + 10 * place] = model.placeholder_ids[modality]
            ids[-1] = eos
            rows.append((ids, torch.cat([torch.full((prompt,), IGNORE_INDEX), ids[prompt:]])))
        input_ids = torch.full((size, LENGTH), eos)
        labels = torch.full((size, LENGTH), IGNORE_INDEX)
        for row, (ids, target) in enumerate(rows):
            input_ids[row, : len(ids)], labels[row, : len(ids)] = ids, target
        batches.append(
            Batch(
                names=[f"clip_{number}_{at}" for at in range(size)],
                mode="multiface_audio_face_text",
                input_ids=input_ids,
                attention_mask=input_ids != eos,
                labels=labels,
                prefusion=Modality.FACE,
                layout=layout_of(
                    input_ids=input_ids,
                    attention_mask=input_ids != eos,
                    labels=labels,
                    packing=packing,
                    placeholder_ids=model.placeholder_ids,
                ),
                media={
                    Modality.FACE: torch.randn(size, 8, 3, 224, 224, generator=draw),
                    Modality.AUDIO: torch.randn(size, 8, 32000, generator=draw),
                },
            ).to(device)
        )
    return batches


class Store:
    """The encoder outputs of all batches in a feature store, and each batch as the store's reader gives it."""

    def __init__(self, root: Path, model: AffectGPTForConditionalGeneration, batches: list[Batch]) -> None:
        self.readers = {}
        encoded = [model.encode(**batch) for batch in batches]
        for modality in batches[0].media:
            writer = FeatureWriter(root / modality.value, key={"modality": modality.value})
            for batch, features in zip(batches, encoded, strict=True):
                for name, feature in zip(batch.names, features[modality].float(), strict=True):
                    writer.write(name, feature)
            writer.close()
            self.readers[modality] = FeatureReader(root / modality.value, key={"modality": modality.value})

    def read(self, batch: Batch) -> Batch:
        """The batch with stored features in place of its media."""
        samples = [Sample(name=name, dataset="benchmark") for name in batch.names]
        features = {
            modality: torch.stack([reader(sample)[0] for sample in samples]).to(batch.input_ids.device)
            for modality, reader in self.readers.items()
        }
        return _encoded(batch, features)


@dataclass(frozen=True)
class Cost:
    """Seconds, and seconds of processor time over all threads."""

    wall: float
    processor: float

    @classmethod
    def now(cls, device: torch.device) -> Cost:
        """Both clocks, with all work that was handed to the device done."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return cls(time.perf_counter(), time.process_time())

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.wall - other.wall, self.processor - other.processor)

    @classmethod
    def median(cls, costs: list[Cost]) -> Cost:
        """Of each clock by itself."""
        return cls(statistics.median(c.wall for c in costs), statistics.median(c.processor for c in costs))


def _encoded(batch: Batch, features: dict[Modality, torch.Tensor]) -> Batch:
    """The batch with encoder outputs in place of its media."""
    kept = {key: value for key, value in batch.items() if key not in tuple(Modality)}
    return Batch(kept, features=features, mode=batch.mode)


class PublishedWay:
    """The published step, stage by stage. ``costs`` has each stage's, step for step."""

    def __init__(
        self, model: AffectGPTForConditionalGeneration, optimizer: torch.optim.Optimizer, train_step: TrainStep
    ) -> None:
        self.model, self.optimizer, self.train_step = model, optimizer, train_step
        self.costs: dict[str, list[Cost]] = {stage: [] for stage in PUBLISHED_STAGES}

    def _timed(self, stage: str, work: Callable[[], Any]) -> Any:
        began = Cost.now(self.train_step.device)
        result = work()
        self.costs[stage].append(Cost.now(self.train_step.device) - began)
        return result

    def forward(self, batch: Batch) -> torch.Tensor:
        """The loss, mean over the batch's learnt tokens."""
        features = {
            Modality.FACE: self._timed("encode video", lambda: self.model.visual_encoder(batch.media[Modality.FACE])),
            Modality.AUDIO: self._timed("encode audio", lambda: self._speech(batch.media[Modality.AUDIO])),
        }
        given = _encoded(batch, features)
        del given["layout"]  # rows padded side by side, asked on the device what is in them
        return self._timed("LLM forward", lambda: self.model(**given).loss)

    def _speech(self, wave: torch.Tensor) -> torch.Tensor:
        """As the encoder does it, without its ``no_grad``."""
        encoder = self.model.acoustic_encoder
        assert encoder is not None
        return type(encoder).forward.__wrapped__(encoder, wave)  # type: ignore[attr-defined]

    def step(self, batch: Batch) -> None:
        """One optimizer step."""
        self.model.acoustic_encoder.model.train()  # type: ignore[union-attr]
        with self.train_step.autocast():
            loss = self.forward(batch)
        self._timed("backward", loss.backward)
        self._timed("optimizer", self.optimizer.step)
        self.optimizer.zero_grad(set_to_none=True)

    def medians(self) -> dict[str, Cost]:
        """Of each stage, if any step was taken."""
        return {stage: Cost.median(costs[WARM_UP:]) for stage, costs in self.costs.items() if costs}

    def numbers(self) -> dict[str, dict[str, float]]:
        """Each stage's for the record."""
        return {
            stage: {"wall_seconds": cost.wall, "processor_seconds": cost.processor}
            for stage, cost in self.medians().items()
        }

    def table(self, *, device: torch.device, compare: bool) -> str:
        """Each stage's time and share, by the clock and (CPU) by processor time; ``compare``: with PUBLISHED_STAGES."""
        medians = self.medians()
        clocks = ("wall", "processor") if device.type == "cpu" else ("wall",)
        whole = {clock: sum(getattr(cost, clock) for cost in medians.values()) for clock in clocks}
        lines = [f"{'stages of the published way':<28}{'ms':>8}" + "".join(f"{f'{clock} %':>13}" for clock in clocks)]
        lines[0] += f"{'expected %':>13}" * compare
        for stage, cost in medians.items():
            shares = [getattr(cost, clock) / whole[clock] for clock in clocks]
            line = f"  {stage:<26}{1000 * cost.wall:>8.0f}" + "".join(f"{100 * share:>13.1f}" for share in shares)
            if compare:
                expected = PUBLISHED_STAGES[stage] / sum(PUBLISHED_STAGES.values())
                line += f"{100 * expected:>13.1f}"
                if expected > 0.01:  # less than that is all rounding
                    near = [abs(share / expected - 1) <= 0.3 for share in shares]
                    line += "   within 30 %" if near[0] else "   by processor within 30 %" if near[-1] else "   OFF"
            lines.append(line)
        return "\n".join(lines)


def measure(step: Callable[[Batch], object], batches: list[Batch], device: torch.device) -> Cost:
    """The median cost of a step over ``batches``, after WARM_UP of them more."""
    costs = []
    for batch in [*batches[:WARM_UP], *batches]:
        began = Cost.now(device)
        step(batch)
        costs.append(Cost.now(device) - began)
    return Cost.median(costs[WARM_UP:])


def mean_tokens(batches: list[Batch]) -> tuple[float, float, float]:
    """Per step: tokens of samples, tokens with padding, learnt tokens."""
    real = sum(int((b.attention_mask | (b.labels != IGNORE_INDEX)).sum()) for b in batches)
    padded, learnt = sum(b.input_ids.numel() for b in batches), sum(map(SupervisedObjective.terms, batches))
    return real / len(batches), padded / len(batches), learnt / len(batches)


def speeds(cost: Cost, costs: dict[str, Cost], *, batch: int) -> dict[str, float]:
    """A way's numbers for the record."""
    found = {
        "wall_seconds_per_step": cost.wall,
        "processor_seconds_per_step": cost.processor,
        "samples_per_second": batch / cost.wall,
    }
    if (slow := costs.get("published way")) is not None:
        found |= {"wall_ratio": slow.wall / cost.wall, "processor_ratio": slow.processor / cost.processor}
    return found


def print_speeds(costs: dict[str, Cost], *, batch: int, tokens: float, device: torch.device, compare: bool) -> None:
    """The table of all ways; ``compare``: with what each had to reach."""
    slow = costs.get("published way")
    print(
        f"\n{'':<28}{'s/step':>8}{'samples/s':>11}{'tokens/s':>10}{'times':>8}{'processor':>11}"
        + f"{'target':>8}" * compare
    )
    for name, cost in costs.items():
        row = f"{name:<28}{cost.wall:>8.3f}{batch / cost.wall:>11.2f}{tokens / cost.wall:>10.0f}"
        if slow is not None:
            row += f"{slow.wall / cost.wall:>7.1f}x"
            row += f"{slow.processor / cost.processor:>10.1f}x" if device.type == "cpu" else f"{'':>11}"
            if compare and name in TARGETS:
                met = slow.wall / cost.wall >= TARGETS[name]
                by_processor = slow.processor / cost.processor >= TARGETS[name]
                verdict = "met" if met else "met by processor time alone" if by_processor else "MISSED"
                row += f"{TARGETS[name]:>7.0f}x  {verdict}"
        print(row)
    if device.type == "cuda":
        best = batch / min(cost.wall for cost in costs.values())
        print(
            f"best {best:.1f} samples/s; the target on one H200 is {TARGET_SAMPLES:.0f}, published are 4.6 on an A100"
        )


def main(argv: list[str] | None = None) -> int:
    """Run the arms and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="medium")
    parser.add_argument("--batch", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="measured of each way")
    parser.add_argument("--rank", type=int, default=16, help="of LoRA")
    parser.add_argument("--packing", type=int, default=2048)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "flash_attention_2", "eager"])
    parser.add_argument("--skip-published", action="store_true", help="measure our arms alone")
    add_out_argument(parser, "training")
    args = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.size == "real" and device.type == "cpu":
        print("error: --size real needs a GPU", file=sys.stderr)
        return 1
    # on a GPU the real size is the full run
    bench = Run(parser, args, full={"size": "real"} if device.type == "cuda" else {})
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if device.type == "cpu":
        torch.set_num_threads(THREADS)
        if (os.cpu_count() or 1) < THREADS or os.getloadavg()[0] > 0.7:
            print(f"note: load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors; trust processor time alone")
    size = SIZES[args.size]
    model = build(size, device=device, dtype=dtype, rank=args.rank)
    run = RunConfig(
        device=device.type, amp_dtype="bfloat16", packing=args.packing, compile=args.compile, attention=args.attention,
        gradient_checkpointing=args.gradient_checkpointing, fused_adamw=device.type == "cuda",
    )  # fmt: skip
    batches = make_batches(
        model, count=args.steps, size=args.batch, vocabulary=size.llm["vocab_size"], device=device, packing=args.packing
    )
    optimizer = build_optimizer(((n, p) for n, p in model.named_parameters() if p.requires_grad), run=run)
    ours = TrainStep(SupervisedObjective(model, run), optimizer=optimizer, run=run, device=device)
    published = PublishedWay(model, optimizer, ours)
    real, padded, learnt = mean_tokens(batches)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights = sum(p.numel() for p in model.llm.parameters())
    print(f"{args.size} on {device}: {weights:,} weights in the LLM, {trained:,} trained; batch {args.batch}")
    print(f"per step: {real:.0f} tokens, {padded:.0f} with padding ({1 - real / padded:.0%}), {learnt:.0f} learnt")

    costs: dict[str, Cost] = {}
    gpu: dict[str, dict[str, float]] = {}

    def arm(name: str, step: Callable[[Batch], object]) -> None:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        costs[name] = measure(step, batches, device)
        if device.type == "cuda":
            flops = step_flop(model).of(tokens=real, learnt=learnt) / costs[name].wall
            peak = peak_flop(device)
            mfu = f", MFU {flops / peak:.1%}" if peak else ""
            memory = torch.cuda.max_memory_allocated() / 1e9
            gpu[name] = {"memory_gb": memory, "tflops": flops / 1e12} | ({"mfu_ratio": flops / peak} if peak else {})
            print(f"{name}: {memory:.1f} GB at most, LLM {flops / 1e12:.0f} TFLOP/s{mfu}")

    with tempfile.TemporaryDirectory() as folder:
        model.eval()
        with torch.no_grad(), ours.autocast():
            store = Store(Path(folder), model, batches)
            first = [
                float(ours.objective(b)) / SupervisedObjective.terms(b) for b in (batches[0], store.read(batches[0]))
            ]
            first.append(float(published.forward(batches[0])))
        published.costs = {stage: [] for stage in PUBLISHED_STAGES}
        print("loss before the first step: ours {:.6f}, from the store {:.6f}, published way {:.6f}".format(*first))
        if max(first) - min(first) > (1e-4 if dtype is torch.float32 else 5e-2):
            print("error: the ways do not compute the same loss", file=sys.stderr)
            return 1
        model.train()
        if not args.skip_published:
            arm("published way", published.step)
            print(f"\n{published.table(device=device, compare=args.size == 'medium')}")
        prepare_llm(model, run)
        model.train()  # the encoders back to eval mode
        arm("ours, encoders in the step", lambda batch: ours.run([batch], lr=1e-5))
        arm("ours, feature store", lambda batch: ours.run([store.read(batch)], lr=1e-5))
    print_speeds(
        costs, batch=args.batch, tokens=real, device=device, compare=device.type == "cpu" and args.size == "medium"
    )
    numbers = {
        "threads": torch.get_num_threads(), "llm_parameters": weights, "trained_parameters": trained,
        "tokens_per_step": real, "padded_tokens_per_step": padded, "learnt_tokens_per_step": learnt,
        "ways": {name: speeds(cost, costs, batch=args.batch) | gpu.get(name, {}) for name, cost in costs.items()},
        "published_stages": published.numbers(),
    }  # fmt: skip
    bench.record("training", numbers, model=args.size, device=str(device))
    return 0


if __name__ == "__main__":
    sys.exit(main())
