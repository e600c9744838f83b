"""Samples per second of a training step, against the published recipe's way of taking it.

    python benchmarks/training.py                      medium model on the CPU, both ways in one process
    python benchmarks/training.py --size real          Qwen2.5-7B, CLIP-L, HuBERT-L with random weights, on a GPU

The published way: both encoders inside the step, the speech encoder in train mode (its feature extractor then asks for
a gradient, so that backward runs through all of it), batches padded to the longest sample, logits of every token. Ours:
encoders in eval mode without a gradient (or their outputs from the feature store), samples packed, logits of learnt
tokens. Both take the same batches of the same model; the loss before the first step is compared.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from affectgpt.config.schema import RunConfig
from affectgpt.core.types import IGNORE_INDEX, Batch, Modality
from affectgpt.modeling.affectgpt import AffectGPT
from affectgpt.modeling.encoders.clip import ClipEncoder
from affectgpt.modeling.encoders.speech import HubertEncoder
from affectgpt.modeling.fusion.base import BRANCHES, IMAGE_BRANCHES, PREFUSIONS, BranchShape, PreFusionShape
from affectgpt.modeling.llm.load import LORA_ALPHA, LORA_DROPOUT
from affectgpt.modeling.llm.rows import get_llm
from affectgpt.training.optim import build_optimizer
from affectgpt.training.step import LossSum, Stepper, learnt_tokens, prepare_llm

# Of the published step on the medium model, ms: the shape that the slow arm must have.
PUBLISHED_STAGES = {"encode video": 606, "encode audio": 2278, "LLM forward": 225, "backward": 4246, "optimizer": 7}
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense bfloat16, as the makers give them


@dataclass(frozen=True)
class Size:
    """Numbers of an architecture."""

    llm: dict
    vision: dict
    projection: int
    speech: dict


SIZES = {
    "medium": Size(
        llm={"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8,
             "num_key_value_heads": 8, "vocab_size": 1600},
        vision={"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 6,
                "patch_size": 16, "image_size": 224},
        projection=384,
        speech={"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 6},
    ),
    "real": Size(
        llm={"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
             "num_key_value_heads": 4, "vocab_size": 152064},
        vision={"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
                "patch_size": 14, "image_size": 224},
        projection=768,
        speech={"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
    ),
}  # fmt: skip


def build(size: Size, *, device: torch.device, dtype: torch.dtype, rank: int) -> AffectGPT:
    """The released recipe (attention everywhere) with random weights, made on ``device``."""
    from peft import LoraConfig, get_peft_model
    from transformers import CLIPConfig, CLIPModel, HubertConfig, HubertModel, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with device:
        llm = Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=False, **size.llm)).requires_grad_(False)
        text = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        clip = ClipEncoder(
            CLIPModel(CLIPConfig(text_config=text, vision_config=size.vision, projection_dim=size.projection))
        )
        stable = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
        hubert = HubertEncoder(HubertModel(HubertConfig(**stable, **size.speech)))
    torch.set_default_dtype(torch.float32)
    llm = get_peft_model(
        llm,
        LoraConfig(
            r=rank, lora_alpha=LORA_ALPHA, lora_dropout=LORA_DROPOUT, bias="none", task_type="CAUSAL_LM",
            target_modules=list(get_llm("Qwen25").lora_targets),
        ),
    )  # fmt: skip
    width, vocabulary = size.llm["hidden_size"], size.llm["vocab_size"]
    with device:
        return AffectGPT(
            llm=llm,
            image=IMAGE_BRANCHES.get("mean")(BranchShape(width=clip.width, llm_width=width, n_tokens=1)),
            video=BRANCHES.get("attention")(BranchShape(width=clip.width, llm_width=width, n_tokens=1)),
            audio=BRANCHES.get("attention")(BranchShape(width=hubert.width, llm_width=width, n_tokens=1)),
            multi=PREFUSIONS.get("attention")(
                PreFusionShape(video_width=clip.width, audio_width=hubert.width, llm_width=width, n_tokens=1)
            ),
            visual_encoder=clip,
            acoustic_encoder=hubert,
            placeholder_ids={m: vocabulary - 5 + i for i, m in enumerate(Modality)},
        ).to(device)


def make_batches(model: AffectGPT, *, count: int, size: int, vocabulary: int, device: torch.device) -> list[Batch]:
    """Random batches: prompts of about 110 tokens, half of the answers label lists, half descriptions."""
    draw = torch.Generator().manual_seed(1)
    eos = vocabulary - 6
    batches = []
    for _ in range(count):
        rows = []
        for _ in range(size):
            prompt = int(torch.randint(95, 125, (1,), generator=draw))
            low, high = (8, 20) if torch.rand(1, generator=draw) < 0.5 else (25, 55)
            answer = int(torch.randint(low, high, (1,), generator=draw))
            ids = torch.randint(10, eos, (prompt + answer,), generator=draw)
            for at, modality in enumerate((Modality.MULTI, Modality.AUDIO, Modality.FACE)):
                ids[5 + 10 * at] = model.placeholder_ids[modality]
            ids[-1] = eos
            rows.append((ids, torch.cat([torch.full((prompt,), IGNORE_INDEX), ids[prompt:]])))
        length = max(len(ids) for ids, _ in rows)
        input_ids = torch.full((size, length), eos)
        labels = torch.full((size, length), IGNORE_INDEX)
        for row, (ids, target) in enumerate(rows):
            input_ids[row, : len(ids)], labels[row, : len(ids)] = ids, target
        batches.append(
            Batch(
                names=[str(i) for i in range(size)],
                mode="multiface_audio_face_text",
                input_ids=input_ids,
                attention_mask=input_ids != eos,
                labels=labels,
                prefusion=Modality.FACE,
                media={
                    Modality.FACE: torch.randn(size, 8, 3, 224, 224, generator=draw),
                    Modality.AUDIO: torch.randn(size, 8, 32000, generator=draw),
                },
            ).to(device)
        )
    return batches


class PublishedWay:
    """The published step, stage by stage. ``seconds`` sums each stage's time."""

    def __init__(self, model: AffectGPT, optimizer: torch.optim.Optimizer, stepper: Stepper) -> None:
        self.model, self.optimizer, self.stepper = model, optimizer, stepper
        self.seconds: dict[str, float] = dict.fromkeys(PUBLISHED_STAGES, 0.0)

    def _timed(self, stage: str, work: Callable):
        began = clock(self.stepper.device)
        result = work()
        self.seconds[stage] += clock(self.stepper.device) - began
        return result

    def forward(self, batch: Batch):
        """The loss, mean over the batch's learnt tokens."""
        features = {
            Modality.FACE: self._timed("encode video", lambda: self.model.visual_encoder(batch.media[Modality.FACE])),
            Modality.AUDIO: self._timed("encode audio", lambda: self._speech(batch.media[Modality.AUDIO])),
        }
        return self._timed("LLM forward", lambda: self.model(replace(batch, media={}, features=features)).loss)

    def _speech(self, wave: torch.Tensor) -> torch.Tensor:
        """As the encoder does it, without its ``no_grad``."""
        encoder = self.model.acoustic_encoder
        assert encoder is not None
        return type(encoder).forward.__wrapped__(encoder, wave)  # type: ignore[attr-defined]

    def step(self, batch: Batch) -> float:
        """One optimizer step."""
        self.model.acoustic_encoder.model.train()  # type: ignore[union-attr]
        with self.stepper.autocast():
            loss = self.forward(batch)
        self._timed("backward", loss.backward)
        self._timed("optimizer", self.optimizer.step)
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())


def clock(device: torch.device) -> float:
    """Seconds, with all work that was handed to the device done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure(step: Callable[[Batch], object], batches: list[Batch], device: torch.device, *, warm_up: int) -> float:
    """Seconds per step over ``batches``, after ``warm_up`` of them."""
    for batch in batches[:warm_up]:
        step(batch)
    began = clock(device)
    for batch in batches:
        step(batch)
    return (clock(device) - began) / len(batches)


def mean_tokens(batches: list[Batch]) -> tuple[float, float, float]:
    """Per step: tokens of samples, tokens with padding, learnt tokens."""
    real = sum(int((b.attention_mask | (b.labels != IGNORE_INDEX)).sum()) for b in batches)
    return tuple(
        n / len(batches) for n in (real, sum(b.input_ids.numel() for b in batches), sum(map(learnt_tokens, batches)))
    )  # type: ignore[return-value]


def main(argv: list[str] | None = None) -> int:
    """Run the arms and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="medium")
    parser.add_argument("--batch", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rank", type=int, default=16, help="of LoRA")
    parser.add_argument("--packing", type=int, default=2048)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "flash_attention_2", "eager"])
    parser.add_argument("--skip-published", action="store_true", help="measure our arms alone")
    args = parser.parse_args(argv)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.size == "real" and device.type == "cpu":
        print("error: --size real needs a GPU", file=sys.stderr)
        return 1
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if device.type == "cpu":
        torch.set_num_threads(min(2, os.cpu_count() or 1))
    size = SIZES[args.size]
    model = build(size, device=device, dtype=dtype, rank=args.rank)
    run = RunConfig(
        device=device.type, amp_dtype="bfloat16", packing=args.packing, compile=args.compile, attention=args.attention,
        gradient_checkpointing=args.gradient_checkpointing, fused_adamw=device.type == "cuda",
    )  # fmt: skip
    batches = make_batches(model, count=args.steps, size=args.batch, vocabulary=size.llm["vocab_size"], device=device)
    optimizer = build_optimizer(((n, p) for n, p in model.named_parameters() if p.requires_grad), run=run)
    ours = Stepper(
        LossSum(model, packing=run.packing, attention=run.attention), optimizer=optimizer, run=run, device=device
    )
    published = PublishedWay(model, optimizer, ours)

    model.eval()
    with torch.no_grad(), ours.autocast():
        first = float(ours.objective(batches[0])) / learnt_tokens(batches[0]), float(published.forward(batches[0]))
        stored = [replace(b, media={}, features=model.encode(b)) for b in batches]
    published.seconds = dict.fromkeys(PUBLISHED_STAGES, 0.0)
    real, padded, learnt = mean_tokens(batches)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights = sum(p.numel() for p in model.llm.parameters())
    print(f"{args.size} on {device}: {weights:,} weights in the LLM, {trained:,} trained; batch {args.batch}")
    print(f"per step: {real:.0f} tokens, {padded:.0f} with padding, {learnt:.0f} learnt")
    print(f"loss before the first step: ours {first[0]:.6f}, published way {first[1]:.6f}")
    if abs(first[0] - first[1]) > (1e-4 if dtype is torch.float32 else 5e-2):
        print("error: the two ways do not compute the same loss", file=sys.stderr)
        return 1

    model.train()
    results = {}
    if not args.skip_published:
        results["published way"] = measure(published.step, batches, device, warm_up=0)
        whole = sum(published.seconds.values())
        print("\nstages of the published way      ms   share   published share")
        for stage, expected in PUBLISHED_STAGES.items():
            share, theirs = published.seconds[stage] / whole, expected / sum(PUBLISHED_STAGES.values())
            print(f"  {stage:<26}{1000 * published.seconds[stage] / len(batches):>9.0f}{share:>8.1%}{theirs:>12.1%}")
    prepare_llm(model, run)
    model.train()
    for name, data in (("ours, encoders in the step", batches), ("ours, feature store", stored)):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        results[name] = measure(lambda batch: ours.run([batch], lr=1e-5), data, device, warm_up=2)
        if device.type == "cuda":
            print(f"{name}: {torch.cuda.max_memory_allocated() / 1e9:.1f} GB at most", end="")
            # Frozen weights need no gradient of their own: two passes over them instead of three.
            flops = 4 * weights * real / results[name]
            peak = next((v for k, v in PEAK_FLOPS.items() if k in torch.cuda.get_device_name(device)), None)
            print(f", LLM {flops / 1e12:.0f} TFLOP/s" + (f", MFU {flops / peak:.1%}" if peak else ""))
    slow = results.get("published way")
    print(f"\n{'':<30}{'s/step':>9}{'samples/s':>11}{'tokens/s':>10}{'times':>8}")
    for name, seconds in results.items():
        times = f"{slow / seconds:>7.1f}x" if slow else ""
        print(f"{name:<30}{seconds:>9.3f}{args.batch / seconds:>11.2f}{real / seconds:>10.0f}{times}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
