"""README, CONTRIBUTING, SECURITY and the pages of docs/: links resolve, what they tell people to type is accepted.

Blocks after the comment ``<!-- run -->`` are executed: tests/test_docs_run.py.
"""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from doc_pages import DOCS, PAGES, ROOT, Page

from affectgpt.cli.common import SCRIPTS
from affectgpt.cli.main import COMMANDS
from affectgpt.config.captioning import CaptioningFile
from affectgpt.config.load import load_config
from affectgpt.config.schema import Config

CAPTIONING = ("caption", "crowd")
SECTIONS = ("run", "model", "inference", "paths", "grpo", "captioning")


def shell_lines(page: Page) -> list[tuple[str, bool]]:
    """Every command of the shell blocks, on one line; and the backticked ones in text, marked as mentions."""
    lines = [(line, False) for block in page.blocks("bash") for line in block.text.replace("\\\n", " ").splitlines()]
    lines += [(line, True) for line in re.findall(r"`((?:affectgpt|make|python|torchrun) [^`]+)`", page.prose)]
    return [(line.split(" #")[0].strip(), mention) for line, mention in lines if line.split("#")[0].strip()]


def calls() -> list[tuple[Page, str, list[str], bool]]:
    """(page, command, arguments, whether it is a mention) of everything that is a command of this project."""
    found = []
    for page in PAGES:
        if page.name == "cluster":  # sbatch and torchrun lines: tests/cli/test_several_machines.py
            continue
        for line, mention in shell_lines(page):
            if not re.search(r"(?:^|[\s/])(?:affectgpt\b|[\w-]+\.py\b)", line):
                continue
            line = line.replace("=…", "=train_configs/demo_cpu.yaml").replace(" …", " all").split(" > ")[0]
            words = [w for w in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=\S*", w)]
            for at, word in enumerate(words):
                name = Path(word).name
                if name in SCRIPTS:
                    found.append((page, SCRIPTS[name], words[at + 1 :], mention))
                    break
                if name == "affectgpt" and at + 1 < len(words) and words[at + 1] in COMMANDS:
                    found.append((page, words[at + 1], words[at + 2 :], mention))
                    break
                assert name != "affectgpt" or words[at + 1 :] in (["COMMAND"], ["--help"], []), (page, line)
    return found


def test_the_pages_show_every_published_script_and_command():
    """The reader of the shell blocks works: else the tests below would have nothing to look at."""
    shown = {command for _, command, *_ in calls()}
    assert shown == set(COMMANDS)
    readme = {command for page, command, *_ in calls() if page.name == "README"}
    assert readme >= set(SCRIPTS.values())


def written(page: Page, path: str, folder: Path) -> Path:
    """A configuration of this repository; or ``mine.yaml`` in ``folder``, as this page (else own-clips) shows it."""
    if (ROOT / path).is_file():
        return ROOT / path
    shown = [block for block in page.blocks("yaml") if block.file == path or f"`{path}`" in block.before]
    if not shown and page.name == "extending":
        shown = [block for block in page.blocks("yaml") if "extends" in block.text]
    if not shown:
        shown = [block for block in DOCS["own-clips"].blocks("yaml") if block.file == path]
    [block] = shown
    return at_home(block.text, folder / path)


def at_home(text: str, path: Path) -> Path:
    """Write a YAML block; what it extends is that of the repository. Files of ``imports:`` are in tests/extension, and
    hold the names that the block gives; they are not imported, since they would register their classes here."""
    given = yaml.safe_load(text)
    if "extends" in given:
        text = text.replace(given["extends"], str(ROOT / given["extends"]))
    for file in given.get("imports", ()):
        code = (ROOT / "tests" / "extension" / file).read_text("utf-8")
        names = [v for k, v in given.get("model", {}).items() if k.endswith(("_encoder", "_fusion_type"))]
        assert all(f'"{name}"' in code for name in names), names
        text = re.sub(r"^imports:.*\n", "", text, flags=re.M)
    path.write_text(text, "utf-8")
    return path


def short(value: object) -> str:
    return value if isinstance(value, str) else " ".join(value)[:60] if isinstance(value, list) else str(value)


@pytest.mark.parametrize(("page", "command", "arguments", "mention"), calls(), ids=short)
def test_every_command_is_accepted(page, command, arguments, mention, tmp_path, capsys):
    """A mention may leave out what the command needs (`affectgpt export --hf`), but has no flag that is not there."""
    parser = importlib.import_module(f"affectgpt.cli.{COMMANDS[command][0]}").build_parser()
    try:
        args = parser.parse_args(arguments)
    except SystemExit as end:
        said = capsys.readouterr().err
        assert mention and (end.code == 0 or "the following arguments are required" in said), said
        assert {word for word in arguments if word[:2] == "--"} <= set(re.findall(r"--[\w-]+", parser.format_help()))
        return
    path = getattr(args, "cfg_path", None)
    if path and Path(path).suffix == ".yaml":
        file = written(page, path, tmp_path)
        options = getattr(args, "options", None) or ()
        kind = CaptioningFile if command in CAPTIONING else Config
        assert load_config(file, options, kind=kind).name == Path(path).stem


def mentioned_options() -> list[str]:
    """`section.key=value` in running text, e.g. ``run.max_epoch=3``, alone or after ``--options``."""
    found = []
    for page in PAGES:
        for code in re.findall(r"[`\"]([^`\"\n]+)[`\"]", page.prose):
            found += re.findall(rf"(?:^|\s)((?:{'|'.join(SECTIONS)})\.[\w.]+=\S*)", code)
    return sorted({option for option in found if "…" not in option})


def test_every_option_is_accepted():
    options = mentioned_options()
    assert len(options) >= 30
    for option in options:
        load_config(ROOT / "train_configs" / "demo_cpu.yaml", [option])


@pytest.mark.parametrize("page", [page for page in PAGES if page.blocks("yaml")], ids=str)
def test_every_yaml_block_is_accepted(page, tmp_path):
    for block in page.blocks("yaml"):
        given = yaml.safe_load(block.text)
        path = at_home(block.text, tmp_path / "mine.yaml")
        config = load_config(path)
        assert set(given) - {"extends"} <= set(vars(config)) and set(given.get("datasets", {})) <= set(config.datasets)


def test_every_named_key_exists():
    """Backticked keys, with or without a value, e.g. ``paths.dataset_root``."""
    text = "\n".join(page.prose for page in PAGES)
    keys = sorted(set(re.findall(rf"`((?:{'|'.join(SECTIONS)})\.\w+)(?=[`=.:])", text)))
    for key in keys:
        section, name = key.split(".")
        if name in ("json", "yaml"):  # run.json, the record of a run; captioning.yaml
            continue
        config = CaptioningFile(name="x") if section == "captioning" else Config(name="x")
        assert name in vars(getattr(config, section)), key
    assert len(keys) > 40


def test_every_file_and_make_target_exists():
    text = "\n".join(page.prose for page in PAGES)
    paths = set(
        re.findall(r"(?<![\w/.])(?:train_configs|benchmarks|tests|docs|affectgpt|constraints)/[\w./*-]*\w", text)
    )
    assert len(paths) > 60
    for path in paths - {"benchmarks/results"}:
        assert list(ROOT.glob(path)), path
    recipes = set(re.findall(r"`([\w*]+\.yaml)`", DOCS["recipes"].prose))
    known = {file.name for file in (ROOT / "train_configs").iterdir()}
    assert known - {name for name in known if "_lz_fast" in name} == recipes & known, "docs/recipes.md lists every file"
    targets = {
        word for page in PAGES for line, _ in shell_lines(page) for word in line.split()[1:2] if line[:5] == "make "
    }
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert targets >= {"demo", "test", "env"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.M), target


def test_every_extra_and_flag_of_pip_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    text = "\n".join(page.text for page in PAGES)
    named = {name for group in re.findall(r"-e '\.\[([\w,]+)\]'", text) for name in group.split(",")}
    assert named <= set(extras) and {"docs", "web", "page"} <= named
    table = DOCS["install"].text.partition("| extra |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, flags=re.M)) == set(extras)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_and_anchors_resolve(page):
    """Relative ones, on a code host and in the site, whose pages can only link among themselves."""
    for target in page.links:
        file, _, anchor = target.partition("#")
        path = (page.path.parent / file).resolve() if file else page.path
        assert path.exists(), target
        if page.name in DOCS:
            assert path.is_relative_to(ROOT / "docs"), f"{target}: not part of the site; name the path instead"
        if anchor:
            there = next(p for p in PAGES if p.path == path)
            assert anchor in there.anchors, f"{target}: anchors there: {', '.join(sorted(there.anchors))}"


def test_a_broken_link_would_be_found():
    page = Page(ROOT / "docs" / "faq.md", "## A b, c\n[x](no.md) [y](#a-b-c) `[z](code.md)`\n```\n[w](block.md)\n```\n")
    assert page.links == ["no.md", "#a-b-c"] and page.anchors == {"a-b-c"}


def flat(nav: list) -> list[str]:
    return [
        file
        for entry in nav
        for value in entry.values()
        for file in ([value] if isinstance(value, str) else flat(value))
    ]


def site() -> dict:
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))


def test_every_page_is_in_the_navigation_once_and_linked_from_the_readme():
    listed = flat(site()["nav"])
    assert sorted(listed) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    readme = {link.partition("#")[0] for link in PAGES[0].links}
    assert {f"docs/{name}" for name in listed} - {"docs/index.md"} <= readme


def test_the_site_needs_nothing_from_elsewhere():
    config = site()
    assert config["plugins"] == ["search"] and config["theme"]["font"] is False
    assert not {"extra_javascript", "extra_css", "extra"} & set(config)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_blocks_of_figures_are_closed_and_apart(page):
    """Between the two lines, which blank lines surround, stands what is measured; a script fills it."""
    lines = page.text.splitlines()
    opened = None
    for at, line in enumerate(lines):
        begins, ends = re.fullmatch(r"<!-- figures: (\w+) -->", line), line == "<!-- /figures -->"
        assert bool(begins or ends) == ("figures" in line and "<!--" in line and "`" not in line), line
        if begins or ends:
            assert (opened is None) == bool(begins) and not lines[at - 1] and lines[at + 1 : at + 2] in ([], [""]), at
            opened = begins[1] if begins else None
    assert opened is None


def test_the_citation_is_that_of_the_readme():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert {"cff-version", "title", "message", "authors"} <= set(citation)
    paper = citation["preferred-citation"]
    authors = " and ".join(f"{a['family-names']}, {a['given-names']}" for a in paper["authors"])
    assert f"{{{paper['title']}}}" in PAGES[0].text and f"{{{authors}}}" in PAGES[0].text


@pytest.mark.slow
def test_the_site_is_built(tmp_path):
    """Strictly; and no page asks another host for anything."""
    command = [sys.executable, "-m", "mkdocs"] if find_spec("mkdocs") else [shutil.which("mkdocs") or ""]
    if not command[0]:
        pytest.skip("mkdocs is not installed: pip install -e '.[docs]', or put an environment that has it on PATH")
    done = subprocess.run(
        [*command, "build", "--strict", "--site-dir", str(tmp_path / "site")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for page in DOCS.values():
        html = (tmp_path / "site" / f"{page.name}.html").read_text("utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=\"?([^\" >]+)|<link[^>]* href=\"?([^\" >]+)", html)
        assert loaded and not [a or b for a, b in loaded if (a or b).startswith(("http:", "https:", "//"))], page
        assert "<!-- run" not in re.sub(r"<!--.*?-->", "", html)  # comments stay comments


@pytest.mark.parity
def test_what_one_answer_for_all_clips_scores(merunibench):
    """The table of docs/scores.md, computed again from the published labels and lexicon."""
    from affectgpt.datasets.table import get_row
    from affectgpt.evaluation.chance import ConstantAnswers
    from affectgpt.evaluation.lexicon import load_folder
    from affectgpt.evaluation.score import ScoringPaths, score_run

    lexicon = load_folder(merunibench / "emotion_wheel")

    def constants(name: str, output: str, *, words: int) -> list:
        places = ScoringPaths(merunibench / output / "results", merunibench / "dataset")
        run = score_run([get_row(name)], places, lexicon, draws=0, permutations=0, allow_missing=True)
        score = run.scores[name][0]
        found = ConstantAnswers(score.metric, score.truth, largest=words)
        return [
            (f"{100 * values[score.metric.keys[0]]:.1f}", answers)
            for values, answers in map(found.of, range(1, words + 1))
        ]

    section = DOCS["scores"].text.partition("## What one answer for all clips scores\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    table = [row for row in rows if row[0].isdigit()]
    mer, ov = constants("MER2023", "output", words=5), constants("OVMERDPlus", "output-ovmerd", words=5)
    assert len(table) == 5
    for row, (hit, answers), (f, _) in zip(table, mer, ov, strict=True):
        assert row == [row[0], hit, ", ".join(answers[0]), f] and answers[0] == answers[1]
    [mosi], [sims] = (constants(name, "output", words=1) for name in ("CMUMOSI", "SIMS"))
    assert rows[-1] == ['"negative" for every clip: WAF', mosi[0], sims[0]]
    assert mosi[1] == sims[1] == (("negative",), ("negative",))
