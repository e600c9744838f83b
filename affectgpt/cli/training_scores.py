"""Direct scores of MER-UniBench on a subset, taken now and then during training (``run.score_every``)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from affectgpt.config.schema import Config
from affectgpt.core.errors import ConfigError

Score = Callable[[Path], dict[str, float]]
_BATCH = 8  # clips that are answered together where inference.batch_size does not say


def training_scores(config: Config, *, preparation: Any, device: Any) -> Callable[[Any], Score] | None:
    """A function model → (checkpoint → ``score_<data set>`` in 0..1) for ``run.score_datasets``; None: none asked for.

    The model in training answers, as it is at the end of the epoch; the answers are read without a language model.
    Samples, truth and lexicon are read here, so that what is missing is told before a model is loaded. Raises
    ConfigError and DataError.
    """
    import torch

    from affectgpt.cli.score import scored_row
    from affectgpt.core.runtime import logger
    from affectgpt.datasets.base import open_dataset
    from affectgpt.datasets.splits import keep_some
    from affectgpt.datasets.table import parse_names
    from affectgpt.evaluation.answers import direct_items
    from affectgpt.evaluation.grouping import grouping_of
    from affectgpt.evaluation.lexicon import find_lexicon
    from affectgpt.evaluation.score import Truth, make_metric, score_items
    from affectgpt.inference.asker import training_mode
    from affectgpt.inference.decoding import sample_seed
    from affectgpt.inference.engines.base import ENGINES, Decoding
    from affectgpt.processing.dataset import AffectDataset
    from affectgpt.processing.loader import question_loader
    from affectgpt.processing.questions import render_question
    from affectgpt.training.distributed import gather

    run = config.run
    if not run.score_every:
        return None
    if not run.score_datasets:
        raise ConfigError("run.score_every is set, but run.score_datasets names no data set")
    if run.parallel == "fsdp2":
        raise ConfigError("run.score_every cannot be used with run.parallel=fsdp2: score the checkpoints instead")
    question = render_question("ovlabel")
    lexicon = find_lexicon(None)
    logger.info("scoring during training: %s by the lexicon %s", ", ".join(run.score_datasets), lexicon.source)
    grouping = grouping_of(lexicon)
    mode = training_mode(config)
    sets = []
    for name in parse_names(",".join(run.score_datasets), custom=config.datasets):
        row = scored_row(config, name)
        truth = Truth.load(row, dataset_root=config.paths.dataset_root)
        samples = open_dataset(config, name).samples("test", labels=False)
        samples = [sample for sample in samples if sample.name in truth.values]
        samples = keep_some(samples, count=run.score_samples, seed=run.seed)
        asked = AffectDataset(
            samples, mode=mode, tokenizer=preparation.tokenizer, transforms=preparation.transforms,
            n_tokens=preparation.n_tokens, question=question, max_new_tokens=config.inference.max_new_tokens,
            n_frames=config.inference_frames.n_frms, image_size=config.inference_frames.image_size,
            audio_clip_spacing=config.model.audio_clip_spacing, face_channels=config.model.face_channels,
        )  # fmt: skip
        sets.append((row, truth, make_metric(row, grouping), asked))
    batch_size = config.inference.batch_size or _BATCH

    def score(model: Any, engine: Any, checkpoint: Path) -> dict[str, float]:
        scores = {}
        model.eval()
        # Sampling has streams of its own; the stream that dropout goes on with stays where it is.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
            for row, truth, metric, asked in sets:
                answers: dict[str, str] = {}
                for batch in question_loader(asked, batch_size=batch_size, num_workers=0):
                    seeds = [
                        sample_seed(config.inference.seed, row.name, name, question, checkpoint.name)
                        for name in batch.names
                    ]
                    replies = engine.generate(batch, seeds=seeds)
                    answers.update((name, reply.text) for name, reply in zip(batch.names, replies, strict=True))
                answers = {name: answer for part in gather(answers) for name, answer in part.items()}
                items, _ = direct_items(answers, polarity=metric.polarity)
                result = score_items(
                    items, truth, metric, source=checkpoint, checkpoint=checkpoint.name, allow_missing=True
                )
                scores[f"score_{row.name}"] = round(result.primary, 6)
        model.train()
        logger.info("%s: %s", checkpoint.name, ", ".join(f"{k} {100 * v:.2f}" for k, v in scores.items()))
        return scores

    def of(model: Any) -> Score:
        decoding = Decoding.from_config(config.inference)
        engine = ENGINES.get("transformers")(model, tokenizer=preparation.tokenizer, decoding=decoding)
        return partial(score, model, engine)

    return of
