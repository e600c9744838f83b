"""The shipped configuration, and what is told of a wrong one."""

from pathlib import Path

import pytest

from affectgpt.config.captioning import MERGE_PROMPT, CaptioningFile
from affectgpt.config.load import load_config
from affectgpt.core.errors import ConfigError
from affectgpt.datasets.table import get_row

SHIPPED = Path(__file__).resolve().parents[2] / "train_configs" / "captioning.yaml"


def test_the_shipped_file_parses_and_names_sets_with_training_splits():
    config = load_config(SHIPPED, kind=CaptioningFile)
    assert config.name == "captioning" and config.captioning.merge.prompt == MERGE_PROMPT
    assert config.model.visual_encoder == "CLIP_VIT_LARGE" and config.model.acoustic_encoder == "HUBERT_LARGE"
    for name in config.captioning.crowd.sets:
        assert "train" in get_row(name).splits
    assert {get_row(n).task for n in config.captioning.crowd.sets} == {"basic", "sentiment"}


def test_it_is_no_training_configuration():
    with pytest.raises(ConfigError, match="unknown key 'captioning'"):
        load_config(SHIPPED)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("captioning.merge.temperature=0", None),
        ("captioning.agreement.votes=1.5", "more than 0, at most 1"),
        ("captioning.crowd.models=0", "at least 1"),
        ("captioning.length.sigmas=0", "more than 0"),
        ("captioning.audio.requests_per_minute=0", "more than 0"),
        ("captioning.audio.requests_per_minute=null", None),
        ("captioning.speaker.source=talknet", "csv, estimate, off"),
        ("inference.temperature=0", "more than 0"),
    ],
)
def test_numbers_out_of_range_are_told(option, message):
    if message is None:
        load_config(SHIPPED, [option], kind=CaptioningFile)
        return
    with pytest.raises(ConfigError, match=message):
        load_config(SHIPPED, [option], kind=CaptioningFile)
