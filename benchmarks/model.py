"""Milliseconds per stage of a training step, and peak memory, with random weights: ``python benchmarks/model.py``.

``--size tiny`` runs anywhere; ``--size real`` is the released recipe (Qwen2.5-7B, CLIP-L, HuBERT-L), on a GPU: fp16
frozen parts, float32 connectors and LoRA, autocast.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

STAGES = ("visual", "acoustic", "fusion", "merge", "LLM forward", "backward")
_TINY = {
    "clip-vit-large-patch14": {
        "model_type": "clip", "projection_dim": 48,
        "vision_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                          "patch_size": 32, "image_size": 224},
    },
    "chinese-hubert-large": {
        "model_type": "hubert", "hidden_size": 40, "num_hidden_layers": 4, "num_attention_heads": 4,
        "intermediate_size": 64, "conv_dim": [16] * 7, "conv_bias": True, "feat_extract_norm": "layer",
        "do_stable_layer_norm": True, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
    },
    "Qwen2.5-7B-Instruct": {
        "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1600,
    },
}  # fmt: skip


def main() -> int:
    """Parse, build, measure, print a table and, with ``--json``, a line for machines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "real"), default="tiny")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N (default: the GPU if there is one)")
    parser.add_argument("--batch", type=int, default=3, help="clips (default 3, as released)")
    parser.add_argument("--length", type=int, default=153, help="tokens of prompt and answer (default 153)")
    parser.add_argument("--steps", type=int, default=10, help="measured steps, after two more to warm up")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    import torch

    from affectgpt.core.errors import AffectGPTError
    from affectgpt.core.runtime import pick_device, seed_everything

    try:
        device = pick_device(args.device)
    except AffectGPTError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if args.size == "real" and device.type == "cpu":
        print("error: --size real needs a GPU with about 40 GB (it is built in float32 first)", file=sys.stderr)
        return 1
    seed_everything(0)
    model = build(args.size, device)
    batch = make_batch(model, args.batch, args.length, device)
    runs = [step(model, batch, device) for _ in range(args.steps + 2)][2:]
    result = {
        "size": args.size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "batch": args.batch,
        "length": args.length,
        "ms": {stage: round(statistics.median(run[stage] for run in runs), 3) for stage in STAGES},
        "peak_MiB": round(peak_memory(device)),
    }
    if args.json:
        print(json.dumps(result))
        return 0
    print(f"{args.size} model on {result['device']}, batch {args.batch}, {args.length} tokens, median of {args.steps}")
    for stage, ms in result["ms"].items():
        print(f"{stage:12}{ms:10.1f} ms")
    print(f"{'sum':12}{sum(result['ms'].values()):10.1f} ms\npeak memory {result['peak_MiB']:,} MiB")
    return 0


def build(size: str, device):
    """The released recipe with random weights, as training has it: in train mode, frozen parts in half precision."""
    import torch

    from affectgpt.config.schema import Config, ModelConfig, PathsConfig
    from affectgpt.core.types import Modality
    from affectgpt.modeling.build import build_empty_model

    with tempfile.TemporaryDirectory() as folder:
        if size == "tiny":
            for name, numbers in _TINY.items():
                (Path(folder) / name).mkdir()
                (Path(folder) / name / "config.json").write_text(json.dumps(numbers))
        recipe = ModelConfig(
            multi_fusion_type="attention",
            video_fusion_type="attention",
            audio_fusion_type="attention",
            image_fusion_type="mean",
        )
        config = Config("benchmark", model=recipe, paths=PathsConfig(models_root=folder))
        model = build_empty_model(config, device=device)
    if device.type == "cuda":
        model.visual_encoder.half()
        model.acoustic_encoder.half()
        model.llm.half()
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    model.placeholder_ids = {modality: vocabulary - 10 + number for number, modality in enumerate(Modality)}
    return model.train()


def make_batch(model, size: int, length: int, device):
    """A batch of the released face mode: one token per branch, the second half of the text is learnt."""
    import torch

    from affectgpt.core.types import Batch, Modality

    ids = torch.randint(0, 1000, (size, length))
    for place, modality in enumerate((Modality.MULTI, Modality.AUDIO, Modality.FACE)):
        ids[:, 5 + 10 * place] = model.placeholder_ids[modality]
    labels = ids.clone()
    labels[:, : length // 2] = -100
    return Batch(
        names=[f"clip{n}" for n in range(size)],
        mode="multiface_audio_face_text",
        input_ids=ids,
        attention_mask=torch.ones_like(ids, dtype=torch.bool),
        labels=labels,
        prefusion=Modality.FACE,
        media={Modality.FACE: torch.randn(size, 8, 3, 224, 224), Modality.AUDIO: torch.randn(size, 8, 32000)},
    ).to(device)


def step(model, batch, device) -> dict[str, float]:
    """One step, stage by stage: stage → milliseconds."""
    import torch

    from affectgpt.core.types import Modality
    from affectgpt.modeling.modeling_affectgpt import merge_multimodal_embeddings
    from affectgpt.processing.collate import layout_of

    clock = Clock(device)
    autocast = torch.autocast("cuda", dtype=torch.float16) if device.type == "cuda" else nullcontext()
    with autocast:
        face = model.visual_encoder(batch.media[Modality.FACE])
        clock("visual")
        audio = model.acoustic_encoder(batch.media[Modality.AUDIO])
        clock("acoustic")
        media = model.connect({Modality.FACE: face, Modality.AUDIO: audio}, **batch)
        clock("fusion")
        embeds = merge_multimodal_embeddings(
            input_ids=batch.input_ids,
            embed_tokens=model.get_input_embeddings(),
            modality_embeds=media,
            layout=layout_of(input_ids=batch.input_ids, placeholder_ids=model.placeholder_ids),
            names=batch.names,
        )
        clock("merge")
        loss = model(inputs_embeds=embeds, attention_mask=batch.attention_mask, labels=batch.labels).loss
        clock("LLM forward")
    loss.backward()
    clock("backward")
    model.zero_grad(set_to_none=True)
    return clock.times


class Clock:
    """Time since the last call, by stage; waits for the GPU."""

    def __init__(self, device) -> None:
        self.device, self.times = device, {}
        self.last = self.now()

    def now(self) -> float:
        if self.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def __call__(self, stage: str) -> None:
        now = self.now()
        self.times[stage], self.last = 1000 * (now - self.last), now


def peak_memory(device) -> float:
    """MiB: of the GPU's allocator, or of the whole process on a CPU."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(main())
