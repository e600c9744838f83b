"""Batches: from one set each, by weight, seeded, restartable, shared by ranks."""

from __future__ import annotations

from collections import Counter

import pytest

from affectgpt.core.errors import ConfigError
from affectgpt.processing.data import MixedBatches, SequentialBatches


def epoch_of(batches, epoch, start=0):
    batches.set_epoch(epoch, start=start)
    return list(batches)


def mixed(**changes):
    options = {"sizes": [10, 7], "weights": [3, 1], "batch_size": 3, "iters_per_epoch": 40, "seed": 5, **changes}
    return MixedBatches(options.pop("sizes"), **options)


def test_each_batch_comes_from_one_set_by_weight():
    batches = [b for epoch in range(1, 26) for b in epoch_of(mixed(), epoch)]
    assert all(len({part for part, _, _ in batch}) == 1 and len(batch) == 3 for batch in batches)
    share = Counter(batch[0][0] for batch in batches)[0] / len(batches)
    assert share == pytest.approx(0.75, abs=0.05)
    assert epoch_of(mixed(weights=None), 1) != epoch_of(mixed(), 1)


def test_every_sample_is_seen_before_one_returns_across_epochs():
    batches = mixed(sizes=[10], weights=None, iters_per_epoch=2)
    seen = [i for epoch in range(1, 6) for batch in epoch_of(batches, epoch) for _, _, i in batch]
    assert sorted(seen[:10]) == sorted(seen[10:20]) == sorted(seen[20:30]) == list(range(10))
    assert seen[:10] != seen[10:20] != list(range(10))


def test_same_seed_same_order_another_seed_another():
    assert epoch_of(mixed(), 3) == epoch_of(mixed(), 3)
    assert epoch_of(mixed(), 3) != epoch_of(mixed(seed=6), 3)
    keys = [key for epoch in (1, 2, 3) for batch in epoch_of(mixed(), epoch) for key in batch]
    assert len(set(keys)) == len(keys)  # (part, pass, index): each drawing is one of its own


def test_a_restart_in_the_middle_of_an_epoch_goes_on_where_it_was():
    for epoch in (1, 4):
        whole = epoch_of(mixed(), epoch)
        restarted = mixed()
        assert epoch_of(restarted, epoch, start=13) == whole[13:] and len(restarted) == 27


def test_ranks_draw_the_same_set_and_share_its_samples():
    ranks = [mixed(sizes=[72, 72], rank=r, world_size=2, iters_per_epoch=12) for r in range(2)]
    both = list(zip(*(epoch_of(r, 1) for r in ranks), strict=True))
    assert all(a[0][0] == b[0][0] for a, b in both)
    taken = Counter(key for pair in both for batch in pair for key in batch)
    assert max(taken.values()) == 1


def test_a_set_smaller_than_a_batch_wraps():
    batch = epoch_of(mixed(sizes=[2], weights=None, batch_size=5), 1)[0]
    assert Counter(i for _, _, i in batch).most_common(1)[0][1] == 3 and len(batch) == 5


@pytest.mark.parametrize("changes", [{"sizes": [3, 0]}, {"weights": [0, 0]}, {"weights": [-1, 2]}, {"sizes": []}])
def test_what_cannot_be_mixed(changes):
    with pytest.raises(ConfigError):
        mixed(**changes)


def test_in_order_and_shared():
    assert list(SequentialBatches(5, batch_size=2)) == [
        [(0, 0, 0), (0, 0, 1)], [(0, 0, 2), (0, 0, 3)], [(0, 0, 4)],
    ]  # fmt: skip
    shares = [SequentialBatches(5, batch_size=2, rank=r, world_size=2) for r in range(2)]
    assert sorted(i for s in shares for b in s for _, _, i in b) == list(range(5))
    assert [len(s) for s in shares] == [len(list(s)) for s in shares] == [2, 1]
