"""The prompt of merging: appendix G, with its clues."""

import pytest

from affectgpt.captioning.ask import Answers
from affectgpt.captioning.describe import Clip, merge, render
from affectgpt.config.captioning import MERGE_PROMPT, MergeAskConfig
from affectgpt.core.errors import ConfigError
from affectgpt.core.types import Sample


def test_the_prompt_is_the_papers(shared):
    text = (shared / "seeds" / "paper.txt").read_text(errors="replace")
    paper = " ".join(text.replace("\ufffd", "fi").split())  # the ligature was lost when the text was taken from the PDF
    start = paper.index("Please act as an expert in the field of emotions. We provide acoustic")
    assert paper[start : start + len(MERGE_PROMPT)] == MERGE_PROMPT


def test_clues_follow_the_prompt_or_fill_its_slots():
    assert render("P", audio="a", visual="v", subtitle="s") == "P\n\nAcoustic clues: a\nVisual clues: v\nSubtitle: s"
    assert render("P", audio=None, visual="v", subtitle="") == "P\n\nVisual clues: v\nSubtitle: (nothing is said)"
    slots = "{visual} | {audio} | {subtitle}"
    assert render(slots, audio="{subtitle}", visual="{audio}", subtitle="s") == "{audio} | {subtitle} | s"


def test_a_clip_without_its_clues_waits(serve, tmp_path):
    from fake_llm_server import Answer

    server = serve(lambda text, _: Answer(text="merged"))
    clips = [Clip(Sample(name=name, dataset="x", subtitle="s")) for name in ("both", "one", "none")]
    spec = MergeAskConfig(base_url=server.url, model="m")
    acoustic, visual = Answers("acoustic", {"both": "a", "one": "a"}), Answers("visual", {"both": "v"})
    found = merge(clips, acoustic=acoustic, visual=visual, spec=spec, folder=tmp_path)
    assert found.texts == {"both": "merged"} and len(server.requests) == 1
    assert found.failures["one"].reason == "no visual clue yet"
    assert found.failures["none"].reason == "no acoustic and no visual clue yet"
    assert merge(clips, acoustic=acoustic, visual=None, spec=spec, folder=tmp_path).texts.keys() == {"both", "one"}


def test_descriptions_must_come_from_somewhere(tmp_path):
    with pytest.raises(ConfigError, match="from a model, or from a file"):
        merge([], acoustic=None, visual=None, spec=MergeAskConfig(client="off"), folder=tmp_path)
