"""AUC, UAUC and WUAUC against sklearn, SQL, hand-worked cases and the properties that define them."""

import duckdb
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from ranker.auc import auc, aucs, uauc, user_aucs, wuauc

SQL_USER_AUC = """
    SELECT p.user_id, avg(CASE WHEN p.score > n.score THEN 1.0 WHEN p.score = n.score THEN 0.5 ELSE 0.0 END) AS auc
    FROM frame p JOIN frame n USING (user_id) WHERE p.clicked AND NOT n.clicked GROUP BY p.user_id
"""


def log(num_rows: int = 3000, num_users: int = 150, seed: int = 0, distinct_scores: int = 40) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "user_id": [f"u{u}" for u in rng.zipf(1.4, num_rows) % num_users],
            "clicked": rng.random(num_rows) < 0.15,
            "score": rng.integers(0, distinct_scores, num_rows) / distinct_scores,
        }
    )


def by_hand(rows: list[tuple[str, bool, float]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["user_id", "clicked", "score"], orient="row")


logs = st.lists(
    st.tuples(st.sampled_from("abcd"), st.booleans(), st.integers(-5, 5).map(float)), min_size=1, max_size=60
).map(by_hand)


def test_every_user_agrees_with_sklearn() -> None:
    frame = log()
    ours = {row["user_id"]: row["auc"] for row in user_aucs(frame, "clicked", "score").iter_rows(named=True)}
    for (user,), rows in frame.group_by("user_id"):
        if rows["clicked"].n_unique() == 1:
            assert ours[user] is None
        else:
            assert ours[user] == pytest.approx(roc_auc_score(rows["clicked"], rows["score"]), abs=1e-12)


def test_every_user_agrees_with_sql_over_all_pairs() -> None:
    frame = log(seed=1)
    expected = dict(duckdb.sql(SQL_USER_AUC).fetchall())
    ours = user_aucs(frame, "clicked", "score").drop_nulls("auc")
    assert dict(ours.select("user_id", "auc").iter_rows()) == pytest.approx(expected, abs=1e-12)


def test_the_means_agree_with_sklearn_loops() -> None:
    frame = log(seed=2)
    aucs, sizes = [], []
    for _, rows in frame.group_by("user_id"):
        if rows["clicked"].n_unique() == 2:
            aucs.append(roc_auc_score(rows["clicked"], rows["score"]))
            sizes.append(rows.height)
    assert uauc(frame, "clicked", "score").value == pytest.approx(np.mean(aucs), abs=1e-12)
    assert wuauc(frame, "clicked", "score").value == pytest.approx(np.average(aucs, weights=sizes), abs=1e-12)
    assert auc(frame, "clicked", "score").value == pytest.approx(roc_auc_score(frame["clicked"], frame["score"]))


def test_worked_by_hand() -> None:
    frame = by_hand(
        [("a", True, 0.9), ("a", False, 0.1), ("b", True, 0.2), ("b", False, 0.2), ("b", False, 0.7), ("c", True, 0.5)]
    )
    assert uauc(frame, "clicked", "score").value == pytest.approx((1.0 + 0.25) / 2)
    assert wuauc(frame, "clicked", "score").value == pytest.approx((2 * 1.0 + 3 * 0.25) / 5)
    assert auc(frame, "clicked", "score").value == pytest.approx((3 + 1.5 + 2) / 9)


def test_users_with_one_class_are_skipped_and_counted() -> None:
    frame = by_hand([("a", True, 0.9), ("a", False, 0.1), ("b", False, 0.2), ("b", False, 0.3), ("c", True, 0.5)])
    result = uauc(frame, "clicked", "score")
    assert (result.num_users, result.num_users_skipped) == (1, 2)
    assert (result.num_impressions, result.num_impressions_skipped) == (5, 3)
    assert (result.num_positives, result.num_positives_skipped) == (2, 1)
    assert result.share_impressions_skipped == pytest.approx(0.6)
    assert result.share_positives_skipped == pytest.approx(0.5)


def test_a_log_of_one_class_has_no_value() -> None:
    frame = by_hand([("a", False, 0.9), ("b", False, 0.1)])
    assert auc(frame, "clicked", "score").value is None
    assert uauc(frame, "clicked", "score").value is None
    assert wuauc(frame, "clicked", "score").value is None
    assert uauc(frame, "clicked", "score").share_positives_skipped == 0.0


def test_an_empty_log_has_no_value() -> None:
    frame = log().clear()
    assert auc(frame, "clicked", "score").value is None
    assert uauc(frame, "clicked", "score").num_users == 0


def test_a_constant_score_gives_one_half() -> None:
    frame = log().with_columns(score=pl.lit(0.3))
    assert [metric(frame, "clicked", "score").value for metric in (auc, uauc, wuauc)] == [0.5, 0.5, 0.5]


def test_zero_and_minus_zero_are_a_tie() -> None:
    frame = by_hand([("a", True, -0.0), ("a", False, 0.0)])
    assert uauc(frame, "clicked", "score").value == 0.5


def test_scores_that_differ_in_the_last_bit_are_not_a_tie() -> None:
    frame = by_hand([("a", True, np.nextafter(0.3, 1)), ("a", False, 0.3)])
    assert uauc(frame, "clicked", "score").value == 1.0


@pytest.mark.parametrize(("broken", "words"), [(None, "1 null and 0 NaN"), (float("nan"), "0 null and 1 NaN")])
def test_a_score_that_cannot_be_ranked_is_refused(broken: float | None, words: str) -> None:
    frame = by_hand([("a", True, 0.4), ("a", False, 0.1)]).with_columns(
        score=pl.Series([0.4, broken]), impression_id=pl.Series(["i1", "i2"])
    )
    for metric in (auc, uauc, wuauc):
        with pytest.raises(ValueError, match=rf"{words} scores in `score` of 2 rows \(impressions i2\)"):
            metric(frame, "clicked", "score")


def test_an_unknown_outcome_is_refused() -> None:
    frame = by_hand([("a", True, 0.4), ("a", False, 0.1)]).with_columns(clicked=pl.Series([True, None]))
    with pytest.raises(ValueError, match="1 of 2 labels `clicked` are null"):
        uauc(frame, "clicked", "score")


def test_a_label_that_is_not_boolean_is_refused() -> None:
    with pytest.raises(TypeError, match="must be Boolean"):
        uauc(log().with_columns(pl.col("clicked").cast(pl.Int8)), "clicked", "score")


def test_a_user_can_be_judged_within_each_segment() -> None:
    frame = by_hand([("a", True, 0.4), ("a", False, 0.6), ("a", False, 0.1)]).with_columns(
        segment=pl.Series(["x", "x", "y"])
    )
    judged = user_aucs(frame, "clicked", "score", by=("user_id", "segment")).sort("segment")
    assert judged["auc"].to_list() == [0.0, None]


@pytest.mark.parametrize("dtype", [pl.String, pl.Int64, pl.Categorical, pl.Datetime("us")])
def test_users_can_be_of_any_type_and_a_null_is_a_user(dtype: pl.DataType) -> None:
    frame = pl.DataFrame(
        {
            "user_id": pl.Series([7, None, 9, 7, None, 7]).cast(pl.String if dtype == pl.Categorical else dtype),
            "clicked": [True, False, True, False, True, False],
            "score": [0.4, 0.2, 0.1, 0.3, 0.1, 0.4],
        }
    ).with_columns(pl.col("user_id").cast(dtype))
    judged = user_aucs(frame, "clicked", "score").sort("num_impressions", descending=True)
    assert judged["num_impressions"].to_list() == [3, 2, 1]
    assert judged["auc"].to_list() == [0.75, 0.0, None]
    assert judged["user_id"].to_list() == [frame["user_id"][0], None, frame["user_id"][2]]


def test_three_at_once_are_the_three() -> None:
    frame = log(seed=5)
    assert aucs(frame, "clicked", "score") == tuple(metric(frame, "clicked", "score") for metric in (auc, uauc, wuauc))


@given(logs)
@settings(max_examples=100, deadline=None)
def test_row_order_does_not_change_a_bit(frame: pl.DataFrame) -> None:
    shuffled = frame.sample(fraction=1.0, shuffle=True, seed=3)
    for metric in (auc, uauc, wuauc):
        assert metric(shuffled, "clicked", "score") == metric(frame, "clicked", "score")


@given(logs)
@settings(max_examples=100, deadline=None)
def test_rescaling_each_users_scores_upwards_changes_no_user_mean(frame: pl.DataFrame) -> None:
    shift = pl.col("user_id").replace_strict({"a": 0.0, "b": 7.0, "c": -300.0, "d": 1e4})
    rescaled = frame.with_columns(score=shift + pl.col("score") ** 3)
    for metric in (uauc, wuauc):
        assert metric(rescaled, "clicked", "score").value == pytest.approx(metric(frame, "clicked", "score").value)


@given(logs)
@settings(max_examples=100, deadline=None)
def test_turning_the_scores_or_the_labels_round_gives_the_complement(frame: pl.DataFrame) -> None:
    for metric in (auc, uauc, wuauc):
        value = metric(frame, "clicked", "score").value
        if value is None:
            continue
        assert metric(frame.with_columns(-pl.col("score")), "clicked", "score").value == pytest.approx(1 - value)
        assert metric(frame.with_columns(~pl.col("clicked")), "clicked", "score").value == pytest.approx(1 - value)
