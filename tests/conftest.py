"""Fixtures for all tests, and the closing line that says how many parity tests ran."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads slow everything on a busy machine
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models take longer with more, and tests run side by side
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
_PARITY = pytest.StashKey[str]()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with values of the published implementation; the test is skipped where it is absent."""
    if not (SHARED / "golden").is_dir():
        pytest.skip(f"no published reference values at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def golden(shared: Path) -> Path:
    return shared / "golden"


@pytest.fixture(scope="session")
def merunibench(shared: Path) -> Path:
    return shared / "merunibench"


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> Path:
    """A models/ folder of tiny random models under the published names (see helpers/tiny.py); read only."""
    from tiny import make_tiny_models

    return make_tiny_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def make():
    """Writers of tiny media and of every data set's layout, see helpers/layouts.py."""
    from layouts import Makers

    return Makers


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level tokenizer of 256 bytes, Qwen's special tokens and the five placeholders; pad = eos."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from affectgpt.core.types import Modality

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [m.placeholder for m in Modality]})
    return tokenizer


@pytest.fixture(scope="session")
def transforms():
    """What encoders hand in, at the smallest: pixels channel-first, sound as it is."""
    from layouts import PlainPixels, PlainWave

    from affectgpt.core.types import Modality

    pixels, wave = PlainPixels(), PlainWave()
    return {m: wave if m is Modality.AUDIO else pixels for m in Modality if m is not Modality.MULTI}


@pytest.fixture
def log_lines() -> Iterator[list[str]]:
    """The package's log lines from here on, whether or not a command has set up logging before."""
    import logging

    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("affectgpt")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(before)


@pytest.fixture
def serve(monkeypatch):
    """``serve(behave)`` starts a server that plays a language model, on loopback; see helpers/fake_llm_server.py."""
    from fake_llm_server import FakeServer

    for name in ("http_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    servers = []

    def start(behave) -> FakeServer:
        servers.append(FakeServer(behave))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


LONGEST = ("extension", "training", "cli", "inference", "serve")  # folders of files that take a minute


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: else one process works on such a file at the end, when the others have nothing to do."""
    items.sort(key=lambda item: next((i for i, name in enumerate(LONGEST) if name in item.path.parts), len(LONGEST)))


def _is_parity(report) -> bool:
    return "parity" in getattr(report, "keywords", ())  # a file that is skipped whole has none


def pytest_terminal_summary(terminalreporter, config) -> None:
    stats = terminalreporter.stats
    ran = sum(_is_parity(r) for key in ("passed", "failed") for r in stats.get(key, []) if r.when == "call")
    skipped = sum(_is_parity(r) for r in stats.get("skipped", []))
    config.stash[_PARITY] = f"parity: {ran} run, {skipped} skipped"


def pytest_unconfigure(config) -> None:
    """The very last line, after pytest's own."""
    line = config.stash.get(_PARITY, None)
    if line is not None:
        print(line)
