"""What a step of reinforcement learning costs, stage by stage, with random weights; and what it would at real size.

    python benchmarks/grpo.py [--size medium] [--clips 16] [--group 8] [--tokens 50] [--predict]

Stages: roll-out (answers drawn with the key-value cache, each prompt embedded once), reward (rules and lexicon, with
the dealt and the constant answers), log-probabilities of the start (no gradient), update (forward, backward, AdamW).
``--size real`` needs a GPU. ``--predict``: from parts that are measured on this machine, one and two decoder layers of
Qwen2.5-7B and its output matrix, what a step of 16 clips with 8 answers would take here. Ends with status 1 when the
rewards take more than 1 % of a step.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from records import Run, add_out_argument
from sizes import SIZES, Size
from training import build  # benchmarks/training.py
from transformers import GenerationConfig

from affectgpt.config.grpo import GRPOConfig
from affectgpt.config.schema import RunConfig
from affectgpt.core.types import Batch, Labels, Modality
from affectgpt.evaluation.lexicon import grouping_of, load_builtin
from affectgpt.evaluation.rewards import SENTENCE, Grader, truth_of
from affectgpt.inference.engines.base import Answer, Decoding
from affectgpt.inference.engines.transformers import TransformersEngine
from affectgpt.processing.collate import layout_of
from affectgpt.training.objectives.grpo import GRPOObjective, Scorer, advantages_of
from affectgpt.training.optim import build_optimizer
from affectgpt.training.progress import memory_gb
from affectgpt.training.step import TrainStep

PROMPT = 110  # tokens, as MER-Caption+ has them on average
REAL_LAYERS, REAL_VOCABULARY = 28, 152_064
STAGES = ("roll-out", "reward", "log-probabilities", "update")


@dataclass
class Speaker:
    """Stands in for the processor: a random model's tokens are no text."""

    eos_ids: list[int]
    tokenizer: Any = None

    def __post_init__(self) -> None:
        self.tokenizer = type("Tokenizer", (), {"pad_token_id": self.eos_ids[0]})()

    def cut(self, ids: list[int]) -> tuple[list[int], bool]:
        return ids, False

    def decode(self, ids: Any) -> str:
        return ""


class Bench:
    """A model of a size, and the four stages of a step with it."""

    def __init__(self, size: Size, *, clips: int, group: int, tokens: int, device: torch.device, rank: int) -> None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.model = build(size, device=device, dtype=dtype, rank=rank)
        self.clips, self.group, self.tokens, self.device = clips, group, tokens, device
        vocabulary = size.llm["vocab_size"]
        run = RunConfig(device=device.type, amp_dtype="bfloat16", fused_adamw=device.type == "cuda")
        self.grpo = GRPOConfig(group_size=group, max_new_tokens=tokens)
        optimizer = build_optimizer(((n, p) for n, p in self.model.named_parameters() if p.requires_grad), run=run)
        self.step = TrainStep(GRPOObjective(self.model, run, self.grpo), optimizer=optimizer, run=run, device=device)
        self.scorer = Scorer(self.model, autocast=self.step.autocast)
        draw = torch.Generator().manual_seed(2)
        ids = torch.randint(10, vocabulary - 6, (clips, PROMPT), generator=draw)
        for place, modality in enumerate((Modality.MULTI, Modality.AUDIO, Modality.FACE)):
            ids[:, 5 + 10 * place] = self.model.placeholder_ids[modality]
        visual, acoustic = self.model.visual_encoder.width, self.model.acoustic_encoder.width
        self.prompts = Batch(
            names=[f"clip_{i}" for i in range(clips)], mode="multiface_audio_face_text", input_ids=ids,
            attention_mask=torch.ones_like(ids, dtype=torch.bool), prefusion=Modality.FACE,
            features={Modality.FACE: torch.randn(clips, 8, visual, generator=draw),
                      Modality.AUDIO: torch.randn(clips, 8, acoustic, generator=draw)},
        )  # fmt: skip
        self.engine = TransformersEngine(
            self.model, processor=Speaker([vocabulary - 6]),  # type: ignore[arg-type]
            decoding=Decoding(max_new_tokens=tokens, top_p=1.0, top_k=0), defaults=GenerationConfig(),
        )  # fmt: skip
        self.engine.autocast_dtype = self.step.amp_dtype
        lexicon = grouping_of(load_builtin())
        self.grader = Grader({"wheel": 1.0, "format": 0.1, "precision": 0.0, "recall": 0.0}, grouping=lexicon)
        words = [w for w in sorted(lexicon.lexicon.forms) if lexicon.label_mask(w)]
        rng = torch.Generator().manual_seed(3)

        def labels(count: int) -> list[str]:
            return [words[int(i)] for i in torch.randint(len(words), (count,), generator=rng)]

        self.truths = [truth_of(Labels(ovlabels=tuple(labels(3))), lexicon) for _ in range(clips)]
        self.labels = labels

    def rollout(self) -> torch.Tensor:
        """``[clips * group, tokens]``"""
        self.model.eval()
        ids = self.engine.generate_ids(self.prompts, seeds=list(range(self.clips * self.group)))
        self.model.train()
        return ids.cpu().clone()

    def said(self) -> list[list[Answer]]:
        """Texts of the trained form, new in every step, as a policy that explores gives them."""
        return [
            [Answer(SENTENCE.format(", ".join(self.labels(3))), 20, True, ids=(1,) * 20) for _ in range(self.group)]
            for _ in range(self.clips)
        ]

    def reward(self, answers: list[list[Answer]]) -> torch.Tensor:
        """The rewards ``[C, G]``, and those of dealt and constant answers."""
        totals = self.grader.grade(self.truths, answers).totals
        self.grader.grade(self.truths, answers[1:] + answers[:1], read=False)
        self.grader.grade(self.truths, [[answers[0][0]]] * self.clips, read=False)
        return torch.from_numpy(totals)

    def batches(self, ids: torch.Tensor, rewards: torch.Tensor, *, at_once: int) -> list[Batch]:
        """Micro-batches of ``at_once`` clips."""
        gains = advantages_of(rewards, scale=True).float()
        made = []
        for first in range(0, self.clips, at_once):
            here = slice(first, first + at_once)
            rows = slice(first * self.group, (first + at_once) * self.group)
            batch = Batch({k: v[here] if isinstance(v, torch.Tensor | list) else v for k, v in self.prompts.items()})
            answers = ids[rows].clamp(max=self.model.llm.config.vocab_size - 7)
            batch["answer_ids"], batch["answer_mask"] = answers, torch.ones_like(answers, dtype=torch.bool)
            batch["clip_of"] = torch.arange(len(batch.names)).repeat_interleave(self.group)
            batch["advantages"] = gains[here].flatten()
            layout = layout_of(input_ids=batch.input_ids, placeholder_ids=self.model.placeholder_ids)
            batch["layout"] = replace(layout, n_tokens=batch.input_ids.numel())
            made.append(batch)
        return made

    def score(self, batches: list[Batch]) -> None:
        """Log-probabilities by the start."""
        for batch in batches:
            batch["start_logprobs"] = self.scorer.start_logprobs(batch.to(self.device)).cpu()

    def measure(self, *, at_once: int) -> dict[str, float]:
        """Seconds of each stage of one step."""
        seconds = {}

        def timed(stage: str, work: Callable[[], Any]) -> Any:
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            result = work()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            seconds[stage] = time.perf_counter() - began
            return result

        ids = timed("roll-out", self.rollout)
        answers = self.said()
        rewards = timed("reward", lambda: self.reward(answers))
        batches = self.batches(ids, rewards, at_once=at_once)
        timed("log-probabilities", lambda: self.score(batches))
        timed("update", lambda: self.step.run(batches, lr=1e-5))
        return seconds


def predict(device: torch.device, *, clips: int, group: int, tokens: int, rank: int) -> dict[str, float]:
    """Seconds per stage at real size, from one and two layers of it for one clip, and from its output matrix."""
    small = 16_384  # of the vocabulary: the matrix itself would be 2 GB
    found = []
    for layers in (1, 2):
        size = replace(SIZES["tiny"], llm={**SIZES["real"].llm, "num_hidden_layers": layers, "vocab_size": small})
        bench = Bench(size, clips=1, group=group, tokens=tokens, device=device, rank=rank)
        found.append(bench.measure(at_once=1))
        if layers == 2:
            with torch.no_grad():
                states = torch.randn(group * tokens, SIZES["real"].llm["hidden_size"], device=device)
                began = time.perf_counter()
                bench.model.get_output_embeddings()(states.to(bench.model.llm.dtype)).float().logsumexp(dim=-1)
                head = (time.perf_counter() - began) * (REAL_VOCABULARY / small - 1)
        del bench
    one, two = found
    more = {"roll-out": head, "reward": 0.0, "log-probabilities": head, "update": 3 * head}
    return {
        stage: clips * (one[stage] + (REAL_LAYERS - 1) * max(two[stage] - one[stage], 0.0) + more[stage])
        if stage != "reward" else clips * one[stage]
        for stage in STAGES
    }  # fmt: skip


def show(title: str, seconds: dict[str, float]) -> float:
    """A line per stage; the share of the rewards."""
    whole = sum(seconds.values())
    print(f"\n{title}")
    for stage in STAGES:
        print(f"  {stage:<20}{seconds[stage]:>12.4f} s{100 * seconds[stage] / whole:>9.2f} %")
    print(f"  {'step':<20}{whole:>12.4f} s")
    return seconds["reward"] / whole


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="medium")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=50, help="of an answer")
    parser.add_argument("--at-once", type=int, default=2, help="clips of a micro-batch")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--predict", action="store_true")
    add_out_argument(parser, "grpo")
    args = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.size == "real" and device.type == "cpu":
        print("error: --size real needs a GPU; --predict says what it would take", file=sys.stderr)
        return 1
    # a full run on a CPU says what a step would take at real size; a GPU's is of that size
    record = Run(parser, args, full={"predict": True} if device.type == "cpu" else {"size": "real"})
    shape = {"group": args.group, "tokens": args.tokens, "device": device, "rank": args.rank}
    bench = Bench(SIZES[args.size], clips=args.clips, **shape)
    rounds = [bench.measure(at_once=args.at_once) for _ in range(args.steps + 1)][1:]
    median = {stage: sorted(r[stage] for r in rounds)[len(rounds) // 2] for stage in STAGES}
    answers = f"{args.clips} clips x {args.group} answers of {args.tokens} tokens"
    numbers: dict[str, Any] = {"wall_seconds": median, "peak_gb": memory_gb(device)}
    share = show(f"{args.size} on {device}: {answers}; {memory_gb(device):.2f} GB at most", median)
    if args.predict:
        del bench
        expected = predict(device, clips=args.clips, group=args.group, tokens=args.tokens, rank=args.rank)
        numbers["predicted_seconds"] = expected
        show(f"predicted for Qwen2.5-7B on this machine ({device}), {answers}", expected)
    print(f"\nrewards are {100 * share:.2f} % of a step: {'kept' if share <= 0.01 else 'MISSED'} (at most 1 %)")
    record.record("grpo", numbers | {"reward_ratio": share}, model=args.size, device=str(device))
    return 0 if share <= 0.01 else 1


if __name__ == "__main__":
    sys.exit(main())
