"""The demo's tiny CLIP: a random one, taught for some seconds to tell the expressions of drawn training faces."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectgpt.core.files import write_json
from examples.demo import faces
from examples.demo.clips import draw_person
from examples.demo.language import EMOTIONS

if TYPE_CHECKING:
    import numpy as np
    import torch

WIDTH = 40  # of the projected image embedding: differs from every other width of the demo
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_FACES = 1800
_EPOCHS = 8
_BATCH = 48


def draw_lessons(*, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Face crops uint8 ``[count, 112, 112, 3]`` of training persons, and their expression as an index into EMOTIONS."""
    import numpy as np

    rng = np.random.default_rng([seed, 101])
    crops, labels = [], []
    for i in range(count):
        label = i % len(EMOTIONS)
        who = draw_person(seed=seed, number=1000 + int(rng.integers(400)), held_out=False).look
        expression = faces.EXPRESSIONS[EMOTIONS[label]].scaled(float(rng.uniform(0.5, 1.15)))
        talking = 0.4 * float(rng.random()) * float(rng.random() < 0.7)
        shown = faces.Expression(**{**vars(expression), "open": expression.open + talking})
        x, y, roll = rng.uniform(0.42, 0.58), rng.uniform(0.42, 0.49), rng.normal(0, 4)
        pose = faces.Pose(x=x, y=y, roll=roll, blink=float(rng.random() < 0.06))
        frame = faces.draw_frame(faces.draw_background(rng), who, shown, pose)
        # From exact to as far off as a face detector is on drawn faces: it finds them to the right, lower and larger.
        part = rng.random()
        off = replace(pose, x=x + 0.014 * part + rng.normal(0, 0.003), y=y + 0.008 * part + rng.normal(0, 0.003))
        crops.append(faces.crop_face(frame, who, off, zoom=1 - 0.04 * part + rng.normal(0, 0.02)))
        labels.append(label)
    return np.stack(crops), np.array(labels)


def build_clip(*, image_size: int) -> Any:
    """A random CLIPModel of demo size, 8 × 8 patches."""
    from transformers import CLIPConfig, CLIPModel

    return CLIPModel(
        CLIPConfig(
            text_config={
                "vocab_size": 64, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1,
                "num_attention_heads": 2, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2,
                "pad_token_id": 0,
            },
            vision_config={
                "hidden_size": 64, "intermediate_size": 144, "num_hidden_layers": 2, "num_attention_heads": 4,
                "image_size": image_size, "patch_size": image_size // 8,
            },
            projection_dim=WIDTH,
        )
    )  # fmt: skip


def embed(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Projected image embeddings ``[B, WIDTH]`` of pixels ``[B, 3, 224, 224]``, on any version of transformers."""
    return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)


def to_pixels(crops: torch.Tensor) -> torch.Tensor:
    """uint8 ``[B, h, w, 3]`` → float ``[B, 3, h, w]``, normalised as CLIP does."""
    import torch

    x = crops.permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(_MEAN)[:, None, None]) / torch.tensor(_STD)[:, None, None]


def enlarge(small: Any) -> Any:
    """A CLIPModel for 224 pixels from one for 112: each patch weight becomes a quarter of it in 2 × 2 places.

    On an image enlarged from 112 it answers as the small one does, whose lessons cost a quarter.
    """
    model = build_clip(image_size=2 * small.config.vision_config.image_size)
    state = small.state_dict()
    key = "vision_model.embeddings.patch_embedding.weight"
    state[key] = state[key].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3) / 4
    model.load_state_dict(state)
    return model


def pretrain_clip(folder: Path, *, seed: int) -> dict[str, float]:
    """Make, pretrain and save the tiny CLIP; returns its accuracy on the last lessons."""
    import torch
    from torch.nn.functional import cross_entropy

    torch.manual_seed(seed)
    crops, labels = (torch.from_numpy(a) for a in draw_lessons(count=_FACES, seed=seed))
    model = build_clip(image_size=faces.CROP)
    head = torch.nn.Linear(WIDTH, len(EMOTIONS))
    parameters = [*model.vision_model.parameters(), *model.visual_projection.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.02)
    steps = _EPOCHS * (_FACES // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.1)
    model.train()
    correct = []
    for _ in range(_EPOCHS):
        order = torch.randperm(_FACES)
        for i in range(_FACES // _BATCH):
            pick = order[i * _BATCH : (i + 1) * _BATCH]
            logits = head(embed(model, to_pixels(crops[pick])))
            loss = cross_entropy(logits, labels[pick], label_smoothing=0.05)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            correct.append((logits.argmax(1) == labels[pick]).float().mean().item())
    model = enlarge(model).eval()
    model.save_pretrained(folder)
    write_json(
        folder / "preprocessor_config.json",
        {
            "crop_size": 224, "do_center_crop": True, "do_normalize": True, "do_resize": True,
            "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": _MEAN, "image_std": _STD,
            "resample": 3, "size": 224,
        },
    )  # fmt: skip
    return {"accuracy": sum(correct[-20:]) / 20}
