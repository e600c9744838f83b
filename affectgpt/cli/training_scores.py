"""Direct scores of MER-UniBench on a subset, taken now and then during training (``run.score_every``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from affectgpt.config.schema import Config
from affectgpt.core.errors import ConfigError

Score = Callable[[Path], dict[str, float]]
_BATCH = 8  # clips that are answered together where inference.batch_size does not say


def training_scores(config: Config, *, processor: Any, device: Any) -> Callable[[Any], Score] | None:
    """A function model → (checkpoint → ``score_<data set>`` in 0..1) for ``run.score_datasets``; None: none asked for.

    The model in training answers, as it is at the end of the epoch; the answers are read without a language model.
    Samples, truth and lexicon are read here, so that what is missing is reported before a model is loaded. Raises
    ConfigError and DataError.
    """
    import torch

    from affectgpt.cli.score import scored_row
    from affectgpt.core.runtime import logger, rank, world_size
    from affectgpt.datasets.base import keep_some, open_dataset
    from affectgpt.datasets.table import parse_names
    from affectgpt.encoders.llm import folder_generation_config, llm_folder
    from affectgpt.evaluation.extract import direct_items
    from affectgpt.evaluation.lexicon import find_lexicon, grouping_of
    from affectgpt.evaluation.score import Truth, make_metric, score_items
    from affectgpt.inference.encode import DatasetFeatures
    from affectgpt.inference.engines.base import ENGINES, Decoding
    from affectgpt.inference.session import GenerationSession, training_mode
    from affectgpt.processing.questions import check_asked, render_question
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
    mode = processor.mode = training_mode(config)
    sets = []
    for name in parse_names(",".join(run.score_datasets), custom=config.datasets):
        with config.naming("run.score_datasets"):
            check_asked(config, name)
        row = scored_row(config, name)
        truth = Truth.load(row, dataset_root=config.paths.dataset_root)
        samples = open_dataset(config, name).samples("test", labels=False)
        samples = [sample for sample in samples if sample.name in truth.values]
        samples = keep_some(samples, count=run.score_samples, seed=run.seed)
        features = DatasetFeatures(config, samples, dataset=row.name, mode=mode)
        sets.append((row, truth, make_metric(row, grouping), samples, features))
    if config.inference.batch_size is None:
        config = replace(config, inference=replace(config.inference, batch_size=_BATCH))

    def score(session: Any, checkpoint: Path) -> dict[str, float]:
        scores = {}
        session.model.eval()
        session.checkpoint = checkpoint  # its weights are the model's
        # Sampling has streams of its own; the stream that dropout goes on with stays where it is.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
            for row, truth, metric, samples, features in sets:
                mine = samples[rank() :: world_size()]
                batches = session.answer_dataset(mine, question, features=features)
                answers = {answer.sample.name: answer.text for batch in batches for answer in batch}
                answers = {name: answer for part in gather(answers) for name, answer in part.items()}
                items, _ = direct_items(answers, polarity=metric.polarity)
                result = score_items(
                    items, truth, metric, source=checkpoint, checkpoint=checkpoint.name, allow_missing=True
                )
                scores[f"score_{row.name}"] = round(result.primary, 6)
        session.model.train()
        logger.info("%s: %s", checkpoint.name, ", ".join(f"{k} {100 * v:.2f}" for k, v in scores.items()))
        return scores

    def of(model: Any) -> Score:
        engine = ENGINES.get("transformers")(
            model,
            processor=processor,
            decoding=Decoding.from_config(config.inference),
            defaults=folder_generation_config(llm_folder(config)),
        )
        session = GenerationSession(config, processor=processor, model=model, engine=engine, device=device)
        return partial(score, session)

    return of
