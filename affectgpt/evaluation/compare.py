"""Two runs, or two checkpoints, on the same samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from affectgpt.core.errors import DataError
from affectgpt.datasets.table import DatasetRow
from affectgpt.evaluation.board import Board, Places, score_run
from affectgpt.evaluation.lexicon import Lexicon
from affectgpt.evaluation.results import CheckpointChoice
from affectgpt.evaluation.score import Score, Truth
from affectgpt.evaluation.stats import Comparison, compare


@dataclass
class PairedResult:
    """A paired comparison: names of both sides, a result per data set, and what a reader must know."""

    a: str
    b: str
    datasets: dict[str, Comparison] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def compare_runs(
    wanted: Sequence[str],
    rows: Sequence[DatasetRow],
    places: Places,
    lexicon: Lexicon,
    *,
    checkpoints: str | None = None,
    how: str | None = None,
    grouping: str = "wheel",
    allow_missing: bool = False,
    optional: bool = False,
) -> PairedResult:
    """Compare two of ``RUN`` or ``RUN/CHECKPOINT``. A run stands with its best single checkpoint. Raises DataError."""
    truths: dict[str, Truth] = {}
    sides: list[tuple[Board, str]] = []
    notes: list[str] = []
    for text in wanted:
        run, _, checkpoint = text.strip("/").partition("/")
        board = score_run(
            rows, places, lexicon, run=run, choice=CheckpointChoice.parse(checkpoint or checkpoints), how=how,
            grouping=grouping, allow_missing=allow_missing, optional=optional, draws=0, flag="--compare", truths=truths,
        )  # fmt: skip
        best = board.best_single
        if best is None:
            raise DataError(f"run {board.run}: no checkpoint has scores on every data set; name one: RUN/CHECKPOINT")
        if len(board.checkpoints) > 1:
            notes.append(f"{board.run} stands with {best}, the best of {len(board.checkpoints)} on these test sets")
        sides.append((board, best))
    (board_a, a), (board_b, b) = sides
    result = PairedResult(f"{board_a.run}/{a}", f"{board_b.run}/{b}", notes=notes)
    for board in (board_a, board_b):
        result.notes += [words for words in board.caveats() if words not in result.notes and "best of" not in words]
    made = {how for board in (board_a, board_b) for how in board.extractors}
    if len(made) > 1:
        result.notes.append(f"labels were extracted in different ways: {'; '.join(sorted(made))}")
    for dataset in board_a.datasets:
        if dataset in board_b.datasets:
            score_a, score_b = board_a.cell(dataset, a), board_b.cell(dataset, b)
            if score_a is not None and score_b is not None:
                result.datasets[dataset] = _paired(score_a, score_b)
    if not result.datasets:
        raise DataError(f"{result.a} and {result.b} have no data set in common")
    return result


def _paired(a: Score, b: Score) -> Comparison:
    """Compare on the samples that both have."""
    at = {name: index for index, name in enumerate(b.names)}
    shared = [(i, at[name]) for i, name in enumerate(a.names) if name in at]
    if not shared:
        raise DataError(f"{a.source} and {b.source} share no sample")
    return compare(a.metric, a.rows[[i for i, _ in shared]], b.rows[[j for _, j in shared]])
