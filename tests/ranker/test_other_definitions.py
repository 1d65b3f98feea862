"""Other public definitions of AUC by user: against a case worked by hand, a loop over pairs, sklearn and numpy."""

import json
from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from ranker.auc import uauc, wuauc
from ranker.other_definitions import other_definitions

Rows = list[tuple[str, bool, float]]


def by_hand(rows: Rows) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={"user_id": pl.String, "clicked": pl.Boolean, "score": pl.Float64}, orient="row")


def values(frame: pl.DataFrame) -> dict[str, float | None]:
    return {one.name: one.value for one in other_definitions(frame, "clicked", "score").values}


WORKED: Rows = [
    # a: 2 positives, 2 negatives: 3 pairs won, 1 tied (the positive stands first): AUC 3.5/4, 3/4 or 1
    ("a", True, 0.9),
    ("a", True, 0.3),
    ("a", False, 0.3),
    ("a", False, 0.1),
    # b: 1 positive, 2 negatives, one pair won, one lost: AUC 0.5
    ("b", False, 0.2),
    ("b", True, 0.5),
    ("b", False, 0.8),
    # c: 1 positive, 1 negative, tied, the negative first: AUC 0.5, 0 or 1
    ("c", False, 0.4),
    ("c", True, 0.4),
    # d and e: one class
    ("d", False, 0.6),
    ("d", False, 0.7),
    ("d", False, 0.7),
    ("e", True, 0.5),
]


def test_every_definition_on_a_case_worked_by_hand() -> None:
    a, b, c = 3.5 / 4, 0.5, 0.5
    assert values(by_hand(WORKED)) == pytest.approx(
        {
            "UAUC": (a + b + c) / 3,
            "WUAUC": (4 * a + 3 * b + 2 * c) / 9,
            "weighted by positives": (2 * a + 1 * b + 1 * c) / 4,
            "weighted by pairs": (4 * a + 2 * b + 1 * c) / 7,
            "UAUC, one class 0.5": (a + b + c + 0.5 + 0.5) / 5,
            "UAUC, one class 0": (a + b + c) / 5,
            "WUAUC, one class 0": (4 * a + 3 * b + 2 * c) / 13,
            # from low to high the later of two ties ranks higher: a loses its tie, c wins
            "UAUC, sorted up": (3 / 4 + 0.5 + 1) / 3,
            "UAUC, sorted down": (4 / 4 + 0.5 + 0) / 3,
            "one class 0.5, sorted down": (4 / 4 + 0.5 + 0 + 0.5 + 0.5) / 5,
            "no constant, sorted down": (4 / 4 + 0.5) / 2,
            "UAUC, ties lost": (3 / 4 + 0.5 + 0) / 3,
            "UAUC, ties won": (4 / 4 + 0.5 + 1) / 3,
            "AUC": roc_auc_score([p for _, p, _ in WORKED], [s for *_, s in WORKED]),
        },
        abs=1e-12,
    )


def test_users_kept_and_shares_left_out_are_counted_for_every_definition() -> None:
    found = {one.name: one for one in other_definitions(by_hand(WORKED), "clicked", "score").values}
    ours = found["UAUC"]
    assert (ours.num_users, ours.num_users_left_out) == (3, 2)
    assert (ours.share_impressions_left_out, ours.share_positives_left_out) == pytest.approx((4 / 13, 1 / 5))
    for name in ("UAUC, one class 0.5", "UAUC, one class 0", "WUAUC, one class 0", "AUC"):
        assert (found[name].num_users, found[name].share_impressions_left_out) == (5, 0.0)
    without = found["no constant, sorted down"]
    assert (without.num_users, without.num_users_left_out) == (2, 3)
    assert without.share_impressions_left_out == pytest.approx(6 / 13)


def test_the_warning_says_how_many_pairs_tie_and_how_far_they_move_uauc() -> None:
    tied = other_definitions(by_hand(WORKED), "clicked", "score").tied
    assert (tied.num_pairs, tied.num_tied, tied.num_users_with_ties) == (7, 2, 2)
    assert tied.sentence() == (
        "2 of 7 pairs (28.57%), of 2 users, are tied: a code that breaks ties by the order of the rows can give any "
        "UAUC from 0.4167 to 0.8333, and on the rows as they stand 0.7500 sorted from low to high, 0.5000 from high "
        "to low; with half for a tie, as here, it is 0.6250 in any order."
    )
    untied = by_hand([("a", True, 0.9), ("a", True, 0.9), ("a", False, 0.1), ("b", False, 0.9)])
    assert "changes nothing" in other_definitions(untied, "clicked", "score").tied.sentence()


def pair_loop(
    frame: pl.DataFrame, tie: Callable[[int, int], float], one_class: float | None
) -> list[tuple[float, int]]:
    """(AUC, impressions) of each user by going through all pairs; `tie` sees the places of positive and negative."""
    found = []
    for _, rows in frame.with_row_index().group_by("user_id"):
        positives, negatives = rows.filter(pl.col("clicked")).rows(), rows.filter(~pl.col("clicked")).rows()
        won = sum(
            1.0 if p[-1] > n[-1] else tie(p[0], n[0]) if p[-1] == n[-1] else 0.0 for p in positives for n in negatives
        )
        if positives and negatives:
            found.append((won / (len(positives) * len(negatives)), rows.height))
        elif one_class is not None:
            found.append((one_class, rows.height))
    return found


logs = st.lists(
    st.tuples(st.sampled_from("abcd"), st.booleans(), st.sampled_from([-1.0, -0.0, 0.0, 0.25, 3.0])),
    min_size=1,
    max_size=40,
).map(by_hand)


@settings(deadline=None)
@given(logs)
def test_every_tie_rule_and_weight_agrees_with_a_loop_over_pairs(frame: pl.DataFrame) -> None:
    found = values(frame)
    cases: dict[str, tuple[Callable[[int, int], float], float | None, bool]] = {
        "UAUC": (lambda p, n: 0.5, None, False),
        "WUAUC": (lambda p, n: 0.5, None, True),
        "UAUC, one class 0.5": (lambda p, n: 0.5, 0.5, False),
        "UAUC, one class 0": (lambda p, n: 0.5, 0.0, False),
        "WUAUC, one class 0": (lambda p, n: 0.5, 0.0, True),
        "UAUC, sorted up": (lambda p, n: float(p > n), None, False),
        "UAUC, sorted down": (lambda p, n: float(p < n), None, False),
        "one class 0.5, sorted down": (lambda p, n: float(p < n), 0.5, False),
        "UAUC, ties lost": (lambda p, n: 0.0, None, False),
        "UAUC, ties won": (lambda p, n: 1.0, None, False),
    }
    for name, (tie, one_class, weighted) in cases.items():
        users = pair_loop(frame, tie, one_class)
        if not users:
            assert found[name] is None
            continue
        aucs, sizes = zip(*users, strict=True)
        assert found[name] == pytest.approx(np.average(aucs, weights=sizes if weighted else None), abs=1e-12)


@settings(deadline=None)
@given(logs, st.randoms())
def test_only_the_figures_by_file_order_depend_on_it_and_they_stay_between_their_bounds(
    frame: pl.DataFrame, random: object
) -> None:
    before, after = values(frame), values(frame.sample(fraction=1.0, shuffle=True, seed=random.randint(0, 99)))  # type: ignore[attr-defined]
    for name, value in before.items():
        if value is not None and "sorted" not in name:
            assert after[name] == pytest.approx(value, abs=1e-12)
        elif value is not None and name.startswith("UAUC, sorted"):
            lowest, highest = before["UAUC, ties lost"], before["UAUC, ties won"]
            assert lowest is not None
            assert highest is not None
            assert lowest - 1e-12 <= after[name] <= highest + 1e-12  # type: ignore[operator]


def test_a_stable_numpy_sort_gives_the_figures_by_file_order() -> None:
    rng = np.random.default_rng(0)
    n = 4000
    frame = pl.DataFrame(
        {
            "user_id": rng.integers(0, 90, n),
            "clicked": rng.random(n) < 0.1,
            "score": rng.integers(0, 6, n).astype(np.float32),
        }
    )
    up, down = [], []
    for _, rows in frame.group_by("user_id", maintain_order=True):
        label, score = rows["clicked"].to_numpy(), rows["score"].to_numpy()
        for out, key in ((up, score), (down, -score)):
            ordered = label[np.argsort(key, kind="stable")]
            ordered = ordered if key is score else ordered[::-1]
            places = np.flatnonzero(ordered) + 1
            p = len(places)
            if 0 < p < len(ordered):
                out.append((places.sum() - p * (p + 1) / 2) / (p * (len(ordered) - p)))
    found = values(frame)
    assert found["UAUC, sorted up"] == pytest.approx(np.mean(up), abs=1e-12)
    assert found["UAUC, sorted down"] == pytest.approx(np.mean(down), abs=1e-12)
    assert found["UAUC"] == pytest.approx(uauc(frame, "clicked", "score").value, abs=1e-12)
    assert found["WUAUC"] == pytest.approx(wuauc(frame, "clicked", "score").value, abs=1e-12)


def test_a_constant_score_is_worth_anything_from_0_to_1_to_a_code_that_breaks_ties_by_order() -> None:
    positives_first = by_hand([("a", True, 0.5)] * 3 + [("a", False, 0.5)] * 5)
    found = values(positives_first)
    assert (found["UAUC"], found["UAUC, sorted up"], found["UAUC, sorted down"]) == (0.5, 0.0, 1.0)
    assert found["no constant, sorted down"] is None


def test_no_user_with_both_classes_leaves_nothing_to_average_and_json_stays_json() -> None:
    frame = by_hand([("a", True, 0.5), ("b", False, 0.5), ("b", False, 0.1)])
    found = values(frame)
    assert found["UAUC"] is None
    assert found["UAUC, one class 0.5"] == 0.5
    written = json.loads(json.dumps(other_definitions(frame, "clicked", "score").as_json(), allow_nan=False))
    assert written["values"][0]["share_impressions_left_out"] == 1.0
    assert written["warning"] == other_definitions(frame, "clicked", "score").tied.sentence()


def test_a_score_that_cannot_be_ranked_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        other_definitions(by_hand([("a", True, float("nan")), ("a", False, 0.5)]), "clicked", "score")
