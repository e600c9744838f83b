"""The documentation as data: pages, their code blocks with the comment before each, links and anchors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_MARK = r"(?:^<!-- (?P<mark>[\w-]+(?:: [^\n]*?)?) -->\n)?"
_BLOCK = re.compile(rf"{_MARK}^```(?P<language>\w*)\n(?P<text>.*?)^```", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A code block. ``mark``: what the comment on the line before it says; ``before``: the paragraph before that."""

    language: str
    text: str
    mark: str
    before: str

    @property
    def file(self) -> str | None:
        """The file that the reader is to write: ``<!-- file: NAME -->``."""
        return self.mark.removeprefix("file: ") if self.mark.startswith("file: ") else None

    @property
    def runs(self) -> bool:
        """Whether a test executes it: ``<!-- run -->`` or ``<!-- run: slow -->``."""
        return self.mark in ("run", "run: slow")

    @property
    def slow(self) -> bool:
        return self.mark == "run: slow"


@dataclass(frozen=True)
class Page:
    """One Markdown file."""

    path: Path
    text: str

    @property
    def name(self) -> str:
        return self.path.stem

    def __str__(self) -> str:
        return self.name

    @cached_property
    def all_blocks(self) -> list[Block]:
        found = []
        for match in _BLOCK.finditer(self.text):
            before = self.text[: match.start()].rstrip().rsplit("\n\n", 1)[-1]
            found.append(Block(match["language"], match["text"], match["mark"] or "", before))
        return found

    def blocks(self, language: str) -> list[Block]:
        return [block for block in self.all_blocks if block.language == language]

    @cached_property
    def prose(self) -> str:
        """All but the code blocks."""
        return re.sub(r"^```.*?^```", "", self.text, flags=re.M | re.S)

    @cached_property
    def links(self) -> list[str]:
        """Targets of links and pictures that are not web addresses."""
        text = re.sub(r"`[^`\n]*`", "", re.sub(r"\[`([^`\n]*)`\]", r"[\1]", self.prose))
        return re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", text)

    @cached_property
    def anchors(self) -> set[str]:
        """Of headings, where code hosts and the site's generator agree."""
        found = set()
        for heading in re.findall(r"^#+ (.+)$", self.prose, flags=re.M):
            words = re.sub(r"[^\w\s-]", "", re.sub(r"[`*]", "", heading)).strip().lower()
            host, generator = re.sub(r"\s", "-", words), re.sub(r"[-\s]+", "-", words)
            if host == generator:
                found.add(host)
        return found


def _read(path: Path) -> Page:
    return Page(path, path.read_text("utf-8"))


DOCS = {path.stem: _read(path) for path in sorted((ROOT / "docs").glob("*.md"))}
PAGES = [*(_read(ROOT / f"{name}.md") for name in ("README", "CONTRIBUTING", "SECURITY")), *DOCS.values()]
