"""A small benchmark in the published layout: a lexicon, three data sets and the results of two runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from affectgpt.core.npz import write_npz
from affectgpt.datasets.table import get_row
from affectgpt.evaluation.score import ScoringPaths

# level 1, level 2, level 3; a blank cell stands for the value above it
WHEEL = [
    (" Joy ", "Glad", "Happy"), (None, None, "Pleased"), (None, "Proud", "Smug"),
    ("Mad", "Angry", "Furious"), (None, "Cross", "Annoyed"), ("Low", "Sad", "Tearful"),
]  # fmt: skip
OTHER_WHEEL = [("Up", "Happy", "Glad"), ("Down", "Sad", "Angry"), (None, None, "Annoyed")]  # no proud, no smug
SYNONYMS = {
    1: [("happy", "Merry, cheery"), ("angry", "irate,mad"), ("sad", "blue")],
    2: [("glad", "cheery"), ("Annoyed", "irked"), ("smug", None), ("tearful", "blue")],
}
FORMS = [("happy", "happiness,happily"), ("merry", "merriment"), ("cheery", "cheer"), ("angry", "anger"),
         ("irate", "irately"), ("irked", "irks"), ("sad", "sadness,Sadly"), ("blue", "blues"), ("smug", "smugness"),
         ("odd", "oddness")]  # fmt: skip


def write_sheet(path: Path, rows: Sequence[Sequence[object]]) -> None:
    from openpyxl import Workbook

    book = Workbook()
    for row in rows:
        book.active.append(list(row))
    book.save(path)


def write_lexicon(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(1, 6):
        rows = WHEEL if k < 5 else OTHER_WHEEL
        write_sheet(folder / f"wheel{k}.xlsx", [("level1", "level2", "level3"), *rows])
    header = [f"{kind}_run{run}" for run in range(1, 9) for kind in ("word", "synonym")]
    depth = max(map(len, SYNONYMS.values()))
    rows = []
    for i in range(depth):
        cells: list[object] = []
        for run in range(1, 9):
            pairs = SYNONYMS.get(run, [])
            cells += pairs[i] if i < len(pairs) else (None, None)
        rows.append(cells)
    write_sheet(folder / "synonym.xlsx", [header, *rows])
    lines = ["name,format", *(f'{name},"{forms}"' for name, forms in FORMS)]
    (folder / "format.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_items(path: Path, items: Mapping[str, str]) -> Path:
    write_npz(path, filenames=np.array(list(items)), fileitems=np.array(list(items.values())))
    return path


MER2023_TRUTH = {"m1": "happy", "m2": "angry", "m3": "sad", "m4": "neutral"}
SIMS_TRUTH = {"s1": 0.8, "s2": -0.4, "s3": 0.0, "s4": 1.0, "s5": -1.0}
OV_TRUTH = {"o1": "['happy', 'angry']", "o2": "['sad']", "o3": "['odd']"}


@dataclass(frozen=True)
class Bench:
    """Where the small benchmark lies."""

    root: Path
    lexicon: Path

    @property
    def places(self) -> ScoringPaths:
        return ScoringPaths(self.root / "output" / "results", self.root / "dataset")

    def folder(self, dataset: str, run: str) -> Path:
        return self.root / "output" / f"results-{dataset.lower()}" / run

    def add(
        self, dataset: str, run: str, stem: str, items: Mapping[str, str], *, answers: Mapping[str, str] | None = None
    ) -> Path:
        """Extraction files of one checkpoint (labels, and polarity for SIMS), with answers beside them."""
        folder = self.folder(dataset, run)
        write_npz(folder / f"{stem}.npz", name2reason=dict(answers or {name: f"say {i}" for name, i in items.items()}))
        if dataset == "SIMS":
            write_items(folder / f"{stem}-openset.npz", dict.fromkeys(items, "[happy]"))
        return write_items(folder / f"{stem}-openset{'-sentiment' if dataset == 'SIMS' else ''}.npz", items)

    def arguments(self, *more: str) -> list[str]:
        return [
            "--output-root", str(self.root / "output"), "--dataset-root", str(self.root / "dataset"),
            "--lexicon", str(self.lexicon), "--bootstrap", "50", *more,
        ]  # fmt: skip


GOOD = {
    "MER2023": {"m1": "[merriment]", "m2": "[irate, happy]", "m3": "[blue]", "m4": "[]"},
    "SIMS": {"s1": "positive", "s2": "negative", "s3": "neutral", "s4": "positive", "s5": "negative"},
    "OVMERDPlus": {"o1": "[happy]", "o2": "[sad, happy]", "o3": "[happy]"},
}
POOR = {
    "MER2023": {"m1": "[anger]", "m2": "[irate]", "m3": "[happy]", "m4": "[happy]"},
    "SIMS": {"s1": "negative", "s2": "positive", "s3": "neutral", "s4": "positive", "s5": "mixed"},
    "OVMERDPlus": {"o1": "[sad]", "o2": "[]", "o3": "[]"},
}


def make_bench(root: Path, lexicon: Path) -> Bench:
    """Run_a: epochs 30 and 35 on all three data sets; run_b: epoch 30 on MER2023 alone."""
    bench = Bench(root, lexicon)
    data = root / "dataset"
    for name, truth in (("MER2023", MER2023_TRUTH), ("SIMS", SIMS_TRUTH)):
        row = get_row(name)
        key = "val" if name == "SIMS" else "emo"
        corpus = {sample: {key: value} for sample, value in truth.items()}
        write_npz(data / row.root / str(row.label_file), **{row.splits["test"]: corpus, "train_corpus": {}})
    ov = data / get_row("OVMERDPlus").root
    ov.mkdir(parents=True)
    (ov / "ovlabel.csv").write_text("name,openset\n" + "".join(f'{n},"{t}"\n' for n, t in OV_TRUTH.items()))
    (ov / "subtitle_eng.csv").write_text("name,sentence\n" + "".join(f"{n},text\n" for n in OV_TRUTH))
    for dataset, items in GOOD.items():
        bench.add(dataset, "run_a", "checkpoint_000030_loss_0.600", items)
        bench.add(dataset, "run_a", "checkpoint_000035_loss_0.500", POOR[dataset])
    bench.add("MER2023", "run_b", "checkpoint_000030_loss_0.700", POOR["MER2023"])
    return bench
