"""What users add to the metrics: counted together or segment by segment, it is the same."""

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from ranker import user_sums
from ranker.ranked_rows import dense_ranks, score_bits
from ranker.user_sums import Cell, SegmentCodes, codes_of, count_cells


def rows(num_rows: int = 500) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "user": rng.integers(0, 40, num_rows),
        "code": rng.integers(0, 4, num_rows),  # 3 is no segment
        "positive": rng.random(num_rows) < 0.3,
        "score": rng.integers(0, 30, num_rows) / 30,
    }


def cells() -> list[Cell]:
    r = rows()
    ranks = {"a": [dense_ranks(score_bits(r["score"]))], "b": [dense_ranks(score_bits(-r["score"]))] * 2}
    return count_cells("clicked", SegmentCodes("k", ("x", "y", "z"), r["code"]), r["user"], 40, r["positive"], ranks)


def test_each_cell_holds_its_own_rows() -> None:
    r = rows()
    for place, cell in enumerate(cells()):
        inside = r["code"] == place
        assert (cell.segment, cell.num_impressions) == ("xyz"[place], inside.sum())
        assert cell.num_positives == r["positive"][inside].sum()
        np.testing.assert_array_equal(cell.users, np.unique(r["user"][inside]))
        expected = roc_auc_score(r["positive"][inside], r["score"][inside])
        assert cell.rankers["a"].values[0, 0] == pytest.approx(expected, abs=1e-12)
        assert cell.rankers["b"].values[:, 0] == pytest.approx([1 - expected] * 2, abs=1e-12)


def test_every_user_drawn_once_gives_the_values() -> None:
    for cell in cells():
        draws = cell.drawn(cell.columns(0, len(cell.users)).sum(axis=1, keepdims=True))
        for ranker, sums in cell.rankers.items():
            np.testing.assert_allclose(draws[ranker][:, 0], sums.values.mean(axis=0), atol=1e-12)


@pytest.mark.parametrize("places", [1, 80])
def test_segments_counted_a_few_at_a_time_are_the_same(places: int, monkeypatch: pytest.MonkeyPatch) -> None:
    together = cells()
    monkeypatch.setattr(user_sums, "PLACES_AT_ONCE", places)
    apart = cells()
    assert [cell.segment for cell in apart] == [cell.segment for cell in together]
    for one, other in zip(apart, together, strict=True):
        np.testing.assert_array_equal(one.columns(0, len(one.users)), other.columns(0, len(other.users)))


def test_codes_follow_the_order_in_which_segments_are_listed() -> None:
    column = pl.Series(["others", None, "cold_start", "zeta", "others"]).cast(pl.Categorical)
    codes = codes_of("user_segment", column)
    assert codes.segments == ("cold_start", "others", "zeta")
    assert codes.code.tolist() == [1, 3, 0, 2, 1]
