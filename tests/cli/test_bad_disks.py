"""No command ends in a traceback where the disk is full, almost full or read-only: one line, with the file."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bad_disk import KINDS, WRITERS, run_there, why_not
from drawn_clip import write_clip
from fake_llm_server import Answer, FakeServer
from small_annotation import make_world
from small_benchmark import write_items
from tiny_world import World, write_corpus, write_run
from training_recipe import write_recipe, write_training_set

from affectgpt.cli.common import run_cli
from affectgpt.cli.main import COMMANDS
from affectgpt.core.npz import write_npz

ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Places:
    """What the commands read, all of it on a sound disk."""

    root: Path
    world: World
    recipe: Path
    captioning: Path
    results: Path  # results-ovmerdplus/RUN/checkpoint….npz
    clips: Path
    models: Path
    server: str

    @property
    def yaml(self) -> str:
        return str(self.world.yaml)

    @property
    def answers(self) -> Path:
        return next(self.results.rglob("*.npz"))

    @property
    def checkpoint(self) -> Path:
        return next(self.world.run_folder.glob("*.pth"))


@dataclasses.dataclass(frozen=True)
class Case:
    """How a command is run with everything that it writes below ``out``."""

    argv: Callable[[Places, Path], list]
    content: Callable[[Places], Path] | None = None  # is there before the file system fails
    inside: bool = False
    printed: bool = False  # it writes nothing: its output is sent there


def scores(places: Places, out: Path, *more: str) -> list:
    return [
        "--base-root", places.results / "results", "--dataset-root", places.world.root / "dataset",
        "--lexicon", "builtin", "--datasets", "OVMERDPlus", "--bootstrap", "0", *more,
    ]  # fmt: skip


CASES = {
    "demo": Case(lambda p, out: ["--workers", "1"], content=lambda p: p.models, inside=True),
    "train": Case(lambda p, out: ["--cfg-path", p.recipe, "--options", f"paths.output_root={out}"]),
    "infer": Case(
        lambda p, out: ["--cfg-path", p.yaml, "--dataset", "OVMERDPlus", "--options",
                        f"inference.base_root={out}/results", f"inference.ckpt_name={p.checkpoint}"]
    ),
    "sample": Case(
        lambda p, out: ["--cfg-path", p.yaml, "--video_path", p.clips / "a.mp4", "--subtitle", "Hi.", "--face_npy",
                        next((p.world.root / "dataset").rglob("*.npy")),
                        "--options", f"inference.ckpt_name={p.checkpoint}"],
        printed=True,
    ),
    "evaluate": Case(
        lambda p, out: [*scores(p, out), "--extractor", "direct", "--base-root", out / "results"],
        content=lambda p: p.results,
    ),
    "score": Case(
        lambda p, out: scores(p, out, "--answers", p.answers, "--html", out / "page.html", "--json", out / "n.json")
    ),
    "doctor": Case(
        lambda p, out: ["--cfg-path", p.yaml, "--no-hash", "--record", out / "prints.json", "--options",
                        f"inference.ckpt_name={p.checkpoint}"]
    ),
    "check_data": Case(
        lambda p, out: ["--datasets", "OVMERDPlus", "--dataset-root", p.world.root / "dataset", "--csv", out / "p.csv"]
    ),
    "consensus": Case(
        lambda p, out: ["--voters", "a", "b", "--datasets", "OVMERDPlus", "--lexicon", "builtin", "--base-root",
                        out / "results"],
        content=lambda p: p.root / "voters",
    ),
    "ask": Case(
        lambda p, out: ["--base-url", p.server, "--model", "m", "--datasets", "OVMERDPlus", "--dataset-root",
                        p.world.root / "dataset", "--output-root", out, "--media", "subtitle"]
    ),
    "leaderboard": Case(
        lambda p, out: ["--datasets", "OVMERDPlus", "--dataset-root", p.world.root / "dataset", "--lexicon", "builtin",
                        "--bootstrap", "0", "--base-root", p.root / "voters/results", "--out", out / "board.html"]
    ),
    "export_task": Case(
        lambda p, out: ["--lmms-eval", out / "tasks", "--datasets", "OVMERDPlus", "--media", "subtitle", "--lexicon",
                        "builtin", "--dataset-root", p.world.root / "dataset"]
    ),
    "submission": Case(
        lambda p, out: [p.results / "results-ovmerdplus/run/checkpoint_000030_loss_0.500.npz", "--track", "3", "--out",
                        out / "track3.csv"]
    ),
    "preprocess": Case(
        lambda p, out: ["--video-dir", p.clips, "--out", out, "--workers", "1", "--frames", "1"]
    ),
    "caption": Case(lambda p, out: ["--cfg-path", p.captioning, "--options", f"captioning.work={out}/work"]),
    "crowd": Case(lambda p, out: ["train", "--cfg-path", p.captioning, "--options", f"captioning.crowd.folder={out}"]),
    "export": Case(lambda p, out: ["--checkpoint", p.checkpoint, "--out", out / "exported"]),
    "serve": Case(
        lambda p, out: ["--cfg-path", p.yaml, "--port", "0", "--work-dir", out / "requests", "--options",
                        f"inference.ckpt_name={p.checkpoint}"]
    ),
    "params": Case(lambda p, out: ["--cfg-path", p.yaml, "--json"], printed=True),
    "extract_features": Case(
        lambda p, out: ["--cfg-path", p.yaml, "--datasets", "OVMERDPlus", "--split", "test", "--options",
                        f"paths.features_root={out}"]
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def places(tiny_models, tmp_path_factory) -> Iterator[Places]:
    root = tmp_path_factory.mktemp("disks")
    if (reason := why_not(root / "..")) is not None:
        pytest.skip(reason)
    (root / "world").mkdir()
    world = World(root / "world", tiny_models)
    write_corpus(world.root / "dataset", 2)
    write_run(world.run_folder, world.config(), (11,))
    write_npz(
        root / "results/results-ovmerdplus/run/checkpoint_000030_loss_0.500.npz",
        name2reason={f"sample_{i:08d}": "The character's emotional state is happy." for i in range(2)},
    )
    for run in ("a", "b"):
        write_items(
            root / "voters/results-ovmerdplus" / run / "checkpoint_000030_loss_0.500-openset.npz",
            {f"sample_{i:08d}": "[happy]" for i in range(2)},
        )
    annotation = make_world(root / "annotation", tiny_models, clips=6, human=60)
    write_clip(root / "clips" / "a.mp4")
    for name in ("demo-qwen2", "demo-hubert", "demo-clip"):
        marker = root / "demo" / "models" / name / "demo_model.json"
        marker.parent.mkdir(parents=True)
        marker.write_text(json.dumps({"version": 2, "seed": 0}))
    (root / "recipe").mkdir()
    recipe = write_recipe(root / "recipe", models=tiny_models, dataset=write_training_set(root / "training"))
    server = FakeServer(lambda *_: Answer(text="The person's emotional state is calm."))
    yield Places(root, world, recipe, annotation.yaml, root / "results", root / "clips", root / "demo", server.url)
    server.close()


@pytest.mark.parametrize("kind", ["full", pytest.param("one page left", marks=pytest.mark.slow), "read-only"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_in_one_line_that_it_cannot_write(command, kind, places, tmp_path):
    assert command in CASES, f"say in CASES how affectgpt {command} is run with all that it writes in one folder"
    if command == "serve":
        pytest.importorskip("uvicorn", reason="the extra web is not installed")
    case, out = CASES[command], tmp_path / "out"
    writes = kind != "read-only" or not case.printed  # a shell could not even open the file for its output
    outcome = run_there(
        out, kind, [command, *map(str, case.argv(places, out))], logs=tmp_path / "logs",
        content=case.content and case.content(places), inside=case.inside or not writes,
        printed=case.printed and writes,
    )  # fmt: skip
    assert "Traceback" not in outcome.stderr and "Exception ignored" not in outcome.stderr
    if not writes:
        assert outcome.status == 0, outcome.stderr
        return
    errors = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    if kind == "one page left" and not errors:  # what it writes fits
        assert command in ("sample", "check_data", "params")
        return
    assert outcome.status == 1
    assert len(errors) == 1 and errors[0] == outcome.stderr.splitlines()[-1]
    if command == "demo" and kind != "read-only":  # it looks first whether there is room
        assert "output/demo/dataset: 0 MB free on this disk, the synthetic corpus needs 300 MB" in errors[0]
        return
    what = "Read-only file system" if kind == "read-only" else "No space left on device"
    place = "standard output" if case.printed else "output" if case.inside else str(out)
    assert what in errors[0] and place in errors[0] and ".tmp" not in errors[0]
    assert "or write elsewhere" in errors[0] or "give another folder" in errors[0]  # what to do
    assert not list(out.rglob("*")), "the file system was not mounted"


@pytest.mark.parametrize(  # for no semaphore; for no batch
    "room", ["one page left", pytest.param("some pages left", marks=pytest.mark.slow)]
)
def test_loader_workers_without_shared_memory(room, places, tmp_path):
    recipe = write_recipe(
        tmp_path, models=places.world.config().paths.models_root, dataset=places.root / "training", num_workers=1,
        mode="face_text",
    )  # fmt: skip
    outcome = run_there(
        Path("/dev/shm"), room, ["train", "--cfg-path", str(recipe)], logs=tmp_path / "logs",
        options="size=256k,mode=1777",
    )  # fmt: skip
    assert outcome.status == 1 and "Traceback" not in outcome.stderr, outcome.stderr
    assert "error: /dev/shm: No space left on device. The loader's workers share memory there" in outcome.stderr


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("library", WRITERS)
def test_errors_of_every_library_that_writes(library, kind, places, tmp_path):
    outcome = run_there(tmp_path / "out", kind, [library], logs=tmp_path / "logs")
    what = "Read-only file system" if kind == "read-only" else "No space left on device"
    assert outcome.status == 1
    assert outcome.stderr.startswith(f"error: {tmp_path / 'out' / 'here'}.") and what in outcome.stderr
    assert outcome.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EDQUOT, "Make room there"), (errno.EACCES, "Change its permissions"), (errno.EPERM, "Change its"),
        (errno.ENAMETOOLONG, "255 bytes at most"), (errno.EMFILE, "ulimit -n"), (errno.EIO, "disk or its network"),
    ],
)  # fmt: skip
def test_other_errors_of_the_system(number, advice, capsys):
    def command(argv):
        raise OSError(number, os.strerror(number), "some/file")

    def loader(argv):  # as torch's loader hands on what a worker raised
        raise OSError(f"Caught OSError in DataLoader worker process 0.\nOriginal Traceback:\n  …\n{OSError(*error)}\n")

    error = (number, os.strerror(number), "some/file")
    for raising in (command, loader):
        assert run_cli(raising) == 1
        told = capsys.readouterr().err
        assert told.startswith(f"error: some/file: {os.strerror(number)}. ") and advice in told
        assert told.count("\n") == 1


def test_a_mistake_in_the_program_keeps_its_traceback():
    def command(argv):
        try:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "gone")
        except FileNotFoundError:
            return {}["key"]  # a mistake while an error of the system was being handled is still a mistake

    with pytest.raises(KeyError):
        run_cli(command)


def start(*command: str, **options) -> subprocess.Popen:
    # A shell's background job ignores Ctrl-C, and its children would too.
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


@pytest.mark.parametrize(("arguments", "unbuffered"), [(["params", "--json"], ""), (["--help"], ""), (["--help"], "1")])
def test_a_reader_that_has_seen_enough(arguments, unbuffered, places):
    arguments = [*arguments, "--cfg-path", places.yaml]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    process = start("-m", "affectgpt.cli.main", *arguments, stdout=subprocess.PIPE, env=environment)
    process.stdout.close()  # as head does
    _, told = process.communicate(timeout=100)
    assert (told, process.returncode) == ("", 1)


def test_ctrl_c_reaches_workers_too_and_ends_in_one_line(tmp_path):
    for number in range(6):
        write_clip(tmp_path / "clips" / f"{number}.mp4", seed=number)
    out = tmp_path / "out"
    process = start("-m", "affectgpt.cli.main", "preprocess", "--video-dir", str(tmp_path / "clips"), "--out", str(out))
    deadline = time.monotonic() + 100
    while not list(out.glob("audio/*.wav")) and time.monotonic() < deadline:  # a worker is at work
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=100)
    assert process.returncode == 130 and "stopped" in told.splitlines() and "Traceback" not in told, told
    assert not list(out.rglob(".*"))  # nothing half written
