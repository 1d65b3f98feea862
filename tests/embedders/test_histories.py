from pathlib import Path

import numpy as np
import pytest

from embedders.histories import PADDING, Cut, Passes, Sequences, padded_rows

LISTS = [[1, 2, 3, 4, 5, 6], [7], [8, 9], list(range(100, 300))]


def world() -> Sequences:
    return Sequences.of_lists(LISTS)


def timed() -> Sequences:
    plain = world()
    return Sequences(plain.items_E, np.arange(len(plain.items_E), dtype=np.int64), plain.offsets_U)


def test_offsets_that_do_not_fit_the_interactions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"offsets must run from 0 to the number of interactions \(3\)"):
        Sequences(np.zeros(3, np.int32), None, np.array([0, 2]))


def test_saved_and_opened_they_are_the_same_and_mapped(tmp_path: Path) -> None:
    timed().save(tmp_path)
    opened = Sequences.open(tmp_path)
    assert isinstance(opened.items_E, np.memmap)
    assert [opened.of(user).tolist() for user in range(len(opened))] == LISTS
    assert opened.times_E is not None
    assert opened.times_E.tolist() == list(range(len(opened.items_E)))


@pytest.mark.parametrize("cut", [Cut(earliest=0.5), Cut(earliest=0.0), Cut(max_history=5, max_targets=3)])
def test_history_comes_before_the_targets_and_both_keep_their_order(cut: Cut) -> None:
    passes = Passes(world(), cut, batch_size=2, seed=0)
    seen = set()
    for epoch in range(30):
        for batch in passes.batches(epoch):
            for history, targets in zip(batch.history_BL, batch.target_BT, strict=True):
                history, targets = history[history != PADDING], targets[targets != PADDING]
                (items,) = [one for one in LISTS if history[0] in one]
                seen.add(len(items))
                assert 1 <= len(history) <= cut.max_history
                assert 1 <= len(targets) <= cut.max_targets
                places = [items.index(item) for item in [*history, *targets]]
                assert places == sorted(places), "items of a list are distinct and ascending"
                if len(items) <= cut.max_history:
                    assert len(history) >= max(1, int(len(items) * cut.earliest))
    assert seen == {6, 2, 200}, "a user with one interaction has nothing to predict"


def test_a_long_history_is_a_uniform_subset() -> None:
    passes = Passes(Sequences.of_lists([list(range(200))] * 2), Cut(earliest=0.9, max_history=20), batch_size=2, seed=0)
    read = np.concatenate([batch.history_BL.ravel() for epoch in range(200) for batch in passes.batches(epoch)])
    counts = np.bincount(read, minlength=200)[:180]
    assert counts.min() > 0.4 * counts.mean()
    assert counts[:60].sum() == pytest.approx(counts[60:120].sum(), rel=0.1)


def test_a_calendar_cut_divides_everyone_at_one_time() -> None:
    plain = Sequences.of_lists([[1, 2, 3], [4, 5], [6, 7, 8]])
    times = np.array([10, 20, 30, 40, 50, 5, 25, 26])
    passes = Passes(Sequences(plain.items_E, times, plain.offsets_U), Cut(time=25), batch_size=8, seed=0)
    assert passes.users.tolist() == [0, 2], "user 1 was not there before the cut"
    (batch,) = passes.batches(0)
    divided = {
        (tuple(h[h != PADDING].tolist()), tuple(t[t != PADDING].tolist()))
        for h, t in zip(batch.history_BL, batch.target_BT, strict=True)
    }
    assert divided == {((1, 2), (3,)), ((6,), (7, 8))}, "an event at the cut is a target"


def test_an_epoch_is_a_function_of_seed_and_number_and_reads_every_user_once() -> None:
    many = Sequences.of_lists([[user, user + 1, user + 2] for user in range(0, 300, 3)])
    passes = Passes(many, Cut(), batch_size=16, seed=3)

    def epoch(number: int, which: Passes = passes) -> list[list[int]]:
        return [batch.history_BL[:, 0].tolist() for batch in which.batches(number)]

    assert epoch(1) == epoch(1)
    assert epoch(1) != epoch(2)
    assert epoch(1) != epoch(1, Passes(many, Cut(), batch_size=16, seed=4))
    assert sorted(first for batch in epoch(1) for first in batch) == list(range(0, 300, 3))
    assert len(epoch(1)) == passes.num_batches


def test_processes_share_every_batch_without_overlap() -> None:
    many = Sequences.of_lists([[user, user + 1] for user in range(0, 80, 2)])
    passes = Passes(many, Cut(), batch_size=8, seed=0)
    whole = [sorted(batch.history_BL[:, 0].tolist()) for batch in passes.batches(0)]
    parts = [list(passes.batches(0, share, 2)) for share in range(2)]
    joined = [sorted([*a.history_BL[:, 0], *b.history_BL[:, 0]]) for a, b in zip(*parts, strict=True)]
    assert joined == whole


def test_too_few_users_on_both_sides_are_refused() -> None:
    with pytest.raises(ValueError, match=r"fit: 1 of 2 users have an interaction on both sides of the cut"):
        Passes(Sequences.of_lists([[1], [2, 3]]), Cut(), batch_size=2, seed=0)


def test_rows_are_padded_on_the_right() -> None:
    rows = padded_rows([np.array([5], np.int32), np.array([1, 2, 3], np.int32)])
    assert rows.tolist() == [[5, PADDING, PADDING], [1, 2, 3]]
    assert padded_rows([]).shape == (0, 0)
