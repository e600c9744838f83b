"""Shared by all commands: how errors end, and the arguments of the published scripts."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import select
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from affectgpt.core.errors import AffectGPTError
from affectgpt.core.files import SHARED_MEMORY, system_error

ROOT = Path(__file__).resolve().parents[2]  # of a clone: where the published scripts are
SCRIPTS = {  # their names as commands, for where there is no clone
    "train.py": "train",
    "inference_hybird.py": "infer",
    "inference_sample.py": "sample",
    "evaluation.py": "evaluate",
    "evaluation-scoreonly.py": "score",
}
_CUDA_MEMORY = "PYTORCH_CUDA_ALLOC_CONF"  # the name that every version of torch in our range reads
_ELSEWHERE = "or write elsewhere (the argument or key that names this place)"
_MAKE_ROOM = f"Make room there, {_ELSEWHERE}"
_ALLOW = f"Change its permissions, {_ELSEWHERE}"
_FREE_FILES = "Raise the limit (ulimit -n 65536), or set run.num_workers=0"
_TO_DO = {
    errno.ENOSPC: _MAKE_ROOM, errno.EDQUOT: _MAKE_ROOM, errno.EFBIG: _MAKE_ROOM,
    errno.EROFS: f"Nothing can be written there: make it writable, {_ELSEWHERE}",
    errno.EACCES: _ALLOW, errno.EPERM: _ALLOW,
    errno.EIO: f"The disk or its network failed: check it, {_ELSEWHERE}",
    errno.ENAMETOOLONG: "A file name has 255 bytes at most: shorten it",
    errno.EMFILE: _FREE_FILES, errno.ENFILE: _FREE_FILES,
    errno.ENOMEM: "Close other programs, or use fewer workers (run.num_workers, --workers) or smaller batches",
}  # fmt: skip


def run_cli(command: Callable[[list[str] | None], int], argv: list[str] | None = None) -> int:
    """Run a command's main function and return its exit status.

    What a user or the machine did becomes one line on stderr and status 1 (a full disk, missing permissions, a missing
    package, …), Ctrl-C status 130. Any other exception is a mistake in the program and keeps its traceback.
    """
    # Two torch threads that spin while anything else uses a core slow a step many times over.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not os.environ.keys() & {"PYTORCH_ALLOC_CONF", _CUDA_MEMORY}:
        # Batches differ in length: without it, blocks of memory that fit none of the next ones stay reserved on a GPU.
        os.environ[_CUDA_MEMORY] = "expandable_segments:True"
    status = 1
    try:
        status = _run(command, argv)
        return status
    finally:
        _leave_group(status)


def _leave_group(status: int) -> None:
    """End a process whose group of ranks was not ended in order: at its normal end NCCL would wait for the others."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return
    error = sys.exc_info()[1]
    if error is not None:
        traceback.print_exception(error)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _run(command: Callable[[list[str] | None], int], argv: list[str] | None) -> int:
    try:
        try:
            return command(argv)
        finally:
            sys.stdout.flush()  # here, where an error can still be said
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except Exception as error:
        output_is_lost = _output_is_lost()
        if isinstance(error, BrokenPipeError) and output_is_lost:
            return 1  # the reader has seen enough: affectgpt params … | head
        message = _explain(error, output_is_lost=output_is_lost)
        if message is None:
            raise
        if not isinstance(error, AffectGPTError):
            sys.unraisablehook = lambda _: None  # what cannot be closed now fails for the same reason
        print(f"error: {message}", file=sys.stderr)
        return 1


def add_imports_argument(parser: argparse._ActionsContainer) -> None:
    """``--imports`` of commands that have no configuration: one inside a checkpoint is never asked for code."""
    parser.add_argument(
        "--imports", nargs="+", default=[], metavar="FILE", help="your own Python files with what they register"
    )


def _explain(error: Exception, *, output_is_lost: bool) -> str | None:
    """Return what happened and what to do; None for a mistake in the program."""
    if isinstance(error, AffectGPTError):
        return str(error)
    if isinstance(error, ImportError):
        return _missing_package(error)
    found = system_error(error)
    if found is None:
        return None
    place = found.filename or ("standard output" if output_is_lost else None)
    if place is None and found.errno == errno.ENOSPC and _is_full(SHARED_MEMORY):
        place = SHARED_MEMORY
    what = f"{place}: {found.strerror}" if place else str(found.strerror)
    to_do = _TO_DO.get(found.errno or 0, "Correct that, then run the same command again")
    if place == SHARED_MEMORY:
        to_do = "The loader's workers share memory there: give it more (docker run --shm-size=8g), or run.num_workers=0"
    return f"{what}. {to_do}"


def _output_is_lost() -> bool:
    """Return whether standard output takes nothing any more (full disk, closed pipe); then what waits for it is
    dropped."""
    try:
        sys.stdout.flush()
        watch = select.poll()
        watch.register(sys.stdout.fileno(), select.POLLERR)
        if not watch.poll(0):
            return False
    except (OSError, ValueError) as error:
        if not isinstance(error, OSError) or isinstance(error, io.UnsupportedOperation):  # no file is behind it
            return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _is_full(folder: str) -> bool:
    try:
        return shutil.disk_usage(folder).free < 1 << 20
    except OSError:
        return False


def _missing_package(error: ImportError) -> str | None:
    """Return the command that installs a missing package; None for a module of our own."""
    package = (error.name or "").partition(".")[0]
    if package in ("", "affectgpt"):
        return None
    what = f"{sys.executable}: package {package!r} is missing or does not fit ({error})"
    if not (ROOT / "Makefile").is_file():
        return f"{what}. Install it: {shlex.quote(sys.executable)} -m pip install {package}"
    venv = ROOT / ".venv" / "bin" / "python"
    if venv.is_file() and Path(sys.prefix) != venv.parents[1]:
        return f"{what}. Run: {shlex.join([_shortest(venv), *_typed()])}"
    if sys.prefix != sys.base_prefix:
        return f"{what}. Run: {shlex.join([_shortest(Path(sys.executable)), '-m', 'pip', 'install', '-e', str(ROOT)])}"
    return f"{what}. Run: make -C {shlex.quote(str(ROOT))} env   (then: {shlex.join([_shortest(venv), *_typed()])})"


def _typed() -> list[str]:
    """The script and the arguments of this process, as one would type them after python."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:
        return ["-m", spec.name, *sys.argv[1:]]
    if Path(sys.argv[0]).name == "affectgpt":
        return ["-m", "affectgpt.cli.main", *sys.argv[1:]]
    return sys.argv


def command_line(script: str, arguments: Sequence[str]) -> str:
    """A published script with arguments, as it can be typed here: with this interpreter, from the present folder.

    A command that is no script, and all where the package is installed without a clone, as commands of affectgpt.
    """
    if not (ROOT / script).is_file():
        return module_line("affectgpt.cli.main", [SCRIPTS.get(script, script), *arguments])
    return shlex.join([_python(), _shortest(ROOT / script), *arguments])


def module_line(module: str, arguments: Sequence[str]) -> str:
    """The same of a module of this package."""
    return shlex.join([_python(), "-m", module, *arguments])


def _python() -> str:
    python = Path(sys.executable)
    on_path = shutil.which("python")
    return "python" if on_path is not None and Path(on_path).absolute() == python else _shortest(python)


def _shortest(path: Path) -> str:
    """A path from the present folder where it is below it, else in full."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def add_config_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """The two arguments of every published command: ``--cfg-path`` and ``--options``."""
    parser.add_argument("--cfg-path", required=required, metavar="FILE", help="configuration, a file of train_configs/")
    parser.add_argument(
        "--options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help='override any key of the configuration, e.g. "run.max_epoch=3" "model.lora_r=8"; pairs do too: '
        "run.max_epoch 3 model.lora_r 8",
    )
