"""The whole model: batch invariance, what is frozen, what is refused."""

import pytest
import torch

from affectgpt.core.errors import DataError
from affectgpt.core.types import IGNORE_INDEX, Modality

RECIPES = [
    {},
    {"video_fusion_type": "qformer", "audio_fusion_type": "qformer", "multi_fusion_type": "qformer"},
    {"video_fusion_type": "mean", "audio_fusion_type": "mean", "num_video_query_token": 3},
    {"visual_encoder": "EVA_CLIP_G", "video_fusion_type": "qformer", "multi_fusion_type": "qformer"},
    {"visual_encoder": "SigLIP_SO", "acoustic_encoder": "WAVLM_LARGE"},
]


def rows_of(batch, rows):
    return type(batch)(
        names=batch.names[rows],
        mode=batch.mode,
        input_ids=batch.input_ids[rows],
        attention_mask=batch.attention_mask[rows],
        labels=batch.labels[rows],
        prefusion=batch.prefusion,
        media={k: v[rows] for k, v in batch.media.items()},
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_sample_alone_in_two_and_in_eight_with_padding(make, batch_for, recipe):
    model, prepared = make(**recipe)
    lengths = [5, 9, 3, 7, 12, 4, 6, 8]
    eight = batch_for(prepared, lengths)
    calls = {}
    for name in ("visual_encoder", "acoustic_encoder"):
        module = getattr(model, name)
        module.register_forward_pre_hook(lambda m, _, name=name: calls.update({name: calls.get(name, 0) + 1}))
    with torch.no_grad():
        together = model.encode(**eight)
        assert calls == {"visual_encoder": 1, "acoustic_encoder": 1}
        slots = model.connect(together, **eight)
        losses, learnt = [], []
        for row in range(8):
            alone = batch_for(prepared, lengths[row : row + 1], first=row)
            features = model.encode(**alone)
            for kind, z in features.items():
                scale = z.abs().max()
                assert (together[kind][row] - z[0]).abs().max() <= 1e-6 * scale
            for kind, slot in model.connect(features, **alone).items():
                assert (slots[kind][row] - slot[0]).abs().max() <= 1e-5 * slot.abs().max()
            losses.append(model(**alone).loss.item())
            learnt.append(int((alone.labels != IGNORE_INDEX).sum()))
        for rows in (range(0, 2), range(2, 4), range(8)):
            mean = sum(losses[r] * learnt[r] for r in rows) / sum(learnt[r] for r in rows)
            loss = model(**rows_of(eight, slice(rows[0], rows[-1] + 1))).loss.item()
            assert loss == pytest.approx(mean, rel=1e-6)


def test_gradients_reach_the_trained_parameters_only(make, batch_for):
    model, prepared = make()
    model.train()
    model(**batch_for(prepared, [4, 6])).loss.backward()
    model.eval()
    without = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert without == {"image.proj.weight", "image.proj.bias"}  # no image in this mode
    assert all(p.grad is None for n, p in model.named_parameters() if "encoder." in n or "base_layer" in n)
    model.zero_grad(set_to_none=True)


def test_features_stand_in_for_media(make, batch_for):
    model, prepared = make()
    batch = batch_for(prepared, [4, 6])
    with torch.no_grad():
        expected = model(**batch).loss
        features = model.encode(**batch)
        for modality, z in features.items():
            del batch[modality.value]
            batch[modality.features] = z
        assert torch.equal(model(**batch).loss, expected)


def test_a_missing_medium_is_named(make, batch_for):
    model, prepared = make()
    batch = batch_for(prepared, [4])
    del batch["audio"]
    with pytest.raises(
        DataError, match=r"'clip0': its prompt has <AudioHere>, which needs audio; the batch holds face"
    ):
        model(**batch)
    batch = batch_for(prepared, [4])
    face = batch.pop("face")
    batch["prefusion"] = None
    with pytest.raises(DataError, match=r"has <FaceHere>, which needs face; the batch holds audio"):
        model(**batch)
    batch["frame"] = face  # pre-fused where there is no face
    with pytest.raises(DataError, match=r"has <FaceHere>, which needs face; the batch holds audio, frame"):
        model(**batch)


def test_placeholders_that_do_not_match_are_named(make, batch_for):
    model, prepared = make()
    batch = batch_for(prepared, [4, 4])
    face = prepared.tokenizer.convert_tokens_to_ids("<FaceHere>")
    batch.input_ids[1, (batch.input_ids[1] == face).nonzero()[0]] = 3
    with pytest.raises(DataError, match=r"'clip1': its prompt has 0 <FaceHere> tokens, but its embeddings are 1"):
        model(**batch)
    twice = batch_for(prepared, [4, 4])
    twice.input_ids[0, 1] = face
    with pytest.raises(DataError, match=r"'clip0': its prompt has 2 <FaceHere>"):
        model(**twice)


def test_media_without_an_encoder(make, batch_for):
    model, prepared = make()
    encoder, model.visual_encoder = model.visual_encoder, None
    try:
        with pytest.raises(DataError, match="'clip0': face media, but the model has no encoder"):
            model(**batch_for(prepared, [4]))
    finally:
        model.visual_encoder = encoder


def test_an_image_prompt(make, batch_for):
    model, prepared = make(image_fusion_type="token", num_image_query_token=2)
    batch = batch_for(prepared, [4, 5], kinds=(Modality.IMAGE,))
    batch["image"] = batch.pop("face")[:, 0]  # [B, 3, 224, 224]
    del batch["audio"], batch["prefusion"]
    with torch.no_grad():
        assert model.connect(model.encode(**batch), **batch)[Modality.IMAGE].shape == (2, 2, 64)
        assert torch.isfinite(model(**batch).loss)
