"""Blocks of the documentation after ``<!-- run -->`` are executed, page by page, in a folder like a clone.

A page's ``<!-- run: slow -->`` blocks join with ``-m slow``. YAML blocks after ``<!-- file: NAME -->`` are written
into the folder.
docs/own-clips.md (tests/cli/test_own_clips.py), docs/api.md (tests/serve/test_docs.py) and docs/cluster.md
(tests/cli/test_several_machines.py) have tests of their own besides.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from doc_pages import PAGES, Page
from layouts import NAMES, make_layout, write_csv, write_faces, write_sound, write_video
from small_benchmark import write_items
from tiny_clone import FACE, FRAME, add_run, make_clone, shell

from affectgpt.core.npz import write_npz
from affectgpt.datasets.table import get_row

EPOCHS = (30, 35, 40, 45, 50, 55, 60)
LABELS = ("[happy]", "[sad, happy]", "[angry]", "[happy, calm]")


def chosen(*, slow: bool) -> list[Page]:
    return [page for page in PAGES if any(block.runs and block.slow == slow for block in page.all_blocks)]


def add_results(clone: Path, run: str, epochs: tuple[int, ...]) -> None:
    """Answers with extracted labels on three sets of the benchmark, and on MER2025OV."""
    for name in ("MER2023", "SIMS", "OVMERDPlus", "MER2025OV"):
        for epoch in epochs:
            stem = clone / "output" / f"results-{name.lower()}" / run / f"checkpoint_{epoch:06d}_loss_0.{540 - epoch}"
            items = {n: LABELS[(i + epoch // 5) % 4] for i, n in enumerate(NAMES)}
            write_npz(stem.with_name(f"{stem.name}.npz"), name2reason={n: f"They are {i}." for n, i in items.items()})
            write_items(stem.with_name(f"{stem.name}-openset.npz"), items)
            if name == "SIMS":
                polarity = {n: ("positive", "negative")[(i + epoch // 5) % 2] for i, n in enumerate(NAMES)}
                write_items(stem.with_name(f"{stem.name}-openset-sentiment.npz"), polarity)


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """Data sets of four clips, and results of the runs that the pages call RUN, RUN_A, RUN_B and RUN_C."""
    root = tmp_path_factory.mktemp("docs")
    clone = make_clone(root / "clone", root / "no-models")
    for name in ("MER2023", "SIMS", "OVMERDPlus", "MERCaptionPlus", "MER2025OV"):
        make_layout(get_row(name), root / "dataset", media=name != "MER2025OV")
    add_results(clone, "RUN", EPOCHS)
    for run in ("RUN_A", "RUN_B", "RUN_C"):
        add_results(clone, run, (60,))
    return clone


@pytest.fixture(scope="module")
def trained(clone, tiny_models, tmp_path_factory) -> Path:
    """The same with tiny models, checkpoints of the released recipes and the demo's, clips, a set of one's own."""
    from drawn_clip import picture, write_clip

    root = tmp_path_factory.mktemp("trained")
    shutil.copytree(clone.parent / "dataset", root / "dataset")
    models = root / "models"
    models.mkdir()
    for folder in tiny_models.iterdir():
        (models / folder.name).symlink_to(folder)
    for name, of in (
        ("clip", "clip-vit-large-patch14"), ("hubert", "chinese-hubert-large"), ("qwen2", "Qwen2.5-7B-Instruct")
    ):  # fmt: skip
        (models / f"demo-{name}").symlink_to(tiny_models / of)
    made = make_clone(root / "clone", models)
    add_run(made, FACE, EPOCHS)
    add_run(made, FRAME, (30,))
    add_run(made, "demo_cpu", (4,), output="output/demo")
    keep_as_run(made)
    write_clip(made / "clip.mp4")
    write_clip(made / "people.mp4", people=2)
    for seed in (2, 3):
        write_clip(made / "clips" / f"{seed}.mp4", seed=seed)
    write_sound(made / "said.wav")
    import numpy as np

    np.save(made / "clip.npy", np.stack([picture()[:112, :112]] * 8))
    mine = root / "dataset" / "mine"
    write_csv(
        mine / "train.csv", ["name", "english", "labels", "why"],
        [[name, "Oh!", "[happy]", "They smile."] for name in ("a", "b", "c", "d")],
    )  # fmt: skip
    for name in ("a", "b", "c", "d"):
        write_video(mine / "video" / f"{name}.mp4")
        write_sound(mine / "audio" / f"{name}.wav")
        write_faces(mine / "openface_face" / f"{name}.npy")
    return made


def keep_as_run(clone: Path) -> None:
    """``output/RUN/checkpoint_000060_loss_0.480.pth`` with its configuration in it, as training writes it."""
    import torch

    from affectgpt.config.load import load_config
    from affectgpt.config.schema import to_dict
    from affectgpt.modeling.checkpoint import write_checkpoint

    [source] = (clone / "output" / FACE).rglob("checkpoint_000060_*.pth")
    content = torch.load(source, weights_only=True)
    content["config"] = to_dict(load_config(clone / "train_configs" / f"{FACE}.yaml"))
    write_checkpoint(clone / "output" / "RUN" / "checkpoint_000060_loss_0.480.pth", content)


def run_blocks(page: Page, clone: Path, tmp_path: Path, *, slow: bool, results: Path | None = None) -> int:
    """Run a page's blocks in a copy of the clone, with the results of another; how many."""
    here = tmp_path / "clone"
    shutil.copytree(clone, here, symlinks=True)
    if results is not None:
        shutil.copytree(results / "output", here / "output", dirs_exist_ok=True)
    (tmp_path / "dataset").symlink_to(clone.parent / "dataset")
    done = 0
    for block in page.all_blocks:
        if block.file:
            (here / block.file).write_text(block.text, "utf-8")
        if not block.runs or (block.slow and not slow):
            continue
        (here / "block.py").write_text(block.text, "utf-8")
        result = shell(here, block.text if block.language == "bash" else "python block.py")
        assert result.returncode == 0, (
            f"{page.path.name}:\n{block.text}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
        )
        done += 1
    return done


@pytest.mark.parametrize("page", chosen(slow=False), ids=str)
def test_the_quick_blocks_run(page, clone, tmp_path):
    assert run_blocks(page, clone, tmp_path, slow=False)


@pytest.mark.slow
@pytest.mark.timeout(3600)  # each command starts an interpreter
@pytest.mark.parametrize("page", chosen(slow=True), ids=str)
def test_all_blocks_run(page, clone, trained, tmp_path):
    # Pages that score want results of runs; elsewhere answers are made, and nothing is to be there before.
    results = clone if page.name in ("scores", "any-model") else None
    assert run_blocks(page, trained, tmp_path, slow=True, results=results)


def test_marks_are_spelled_as_the_tests_read_them():
    marks = {block.mark.partition(":")[0] for page in PAGES for block in page.all_blocks}
    assert marks <= {"", "run", "file"}
    assert all(block.runs == block.mark.startswith("run") for page in PAGES for block in page.all_blocks)
    assert all(block.language in ("bash", "python") for page in PAGES for block in page.all_blocks if block.runs)
    assert sum(page.text.count("<!-- run") for page in PAGES) - sum(
        block.runs for page in PAGES for block in page.all_blocks
    ) == sum(page.text.count("`<!-- run") for page in PAGES)
