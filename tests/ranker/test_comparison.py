"""Comparisons: the right rows in each cell, draws that agree with exact resampling, verdicts to trust."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from sklearn.metrics import roc_auc_score

from ranker.auc import auc, uauc, wuauc
from ranker.bootstrap import USERS_PER_BLOCK, poisson_weights
from ranker.comparison import compare
from ranker.judged_runs import Run, line_up


def world(num_users: int = 300, per_user: int = 12, seed: int = 0) -> pl.DataFrame:
    """Impressions whose true log-odds are known; half of the users are cold, a tenth of the items."""
    rng = np.random.default_rng(seed)
    n = num_users * per_user
    user = np.repeat(np.arange(num_users), per_user)
    logit = -1.2 + rng.normal(0, 0.5, num_users)[user] + rng.normal(0, 1.2, n)
    clicked = rng.random(n) < 1 / (1 + np.exp(-logit))
    converted = clicked & (rng.random(n) < 1 / (1 + np.exp(-logit)))
    return pl.DataFrame(
        {
            "impression_id": [f"i{i}" for i in range(n)],
            "user_id": [f"u{u}" for u in user],
            "clicked": clicked,
            "converted": converted,
            "logit": logit,
            "user_segment": np.where(user % 2 == 0, "cold_start", "others"),
            "item_segment": np.where(rng.random(n) < 0.1, "cold_start", "others"),
        }
    )


def scored(frame: pl.DataFrame, noise: float, seed: int, better_on: pl.Expr | None = None) -> pl.DataFrame:
    """Predictions that know the log-odds up to noise; less of it where `better_on` holds."""
    rng = np.random.default_rng(seed)
    spread = np.full(frame.height, noise)
    if better_on is not None:
        spread[frame.select(better_on.alias("b"))["b"].to_numpy()] = 0.1
    p = 1 / (1 + np.exp(-(frame["logit"].to_numpy() + rng.normal(0, 1, frame.height) * spread)))
    return frame.drop("logit").with_columns(p_ctr=p, p_cvr=p, p_ctcvr=p * p)


def one(table: pl.DataFrame, **where: Any) -> dict[str, Any]:
    return table.filter(**{"label": "clicked", "segment": "all", "metric": "uauc"} | where).row(0, named=True)


def test_values_are_those_of_the_metrics_on_the_rows_of_the_cell() -> None:
    predictions = scored(world(), 1.0, 1)
    table = compare(line_up([Run("a", 0, predictions)]), baseline=None, num_draws=50)
    clicks = predictions.filter(pl.col("clicked"))
    cold = predictions.filter(item_segment="cold_start")
    for label, score, rows, where in (
        ("clicked", "p_ctr", predictions, {}),
        ("converted", "p_cvr", clicks, {}),
        ("clicked", "p_ctr", cold, {"segment_kind": "item_segment", "segment": "cold_start"}),
    ):
        for metric, judge in (("auc", auc), ("uauc", uauc), ("wuauc", wuauc)):
            expected = judge(rows, label, score)
            row = one(table, label=label, metric=metric, **where)
            assert row["value"] == pytest.approx(expected.value, abs=1e-12)
            assert row["low"] < row["value"] < row["high"]
            assert (row["num_impressions"], row["num_positives"]) == (expected.num_impressions, expected.num_positives)
    skipped = one(table, segment_kind="item_segment", segment="cold_start")
    expected_users = uauc(cold, "clicked", "p_ctr")
    assert skipped["num_users"] == expected_users.num_users
    assert skipped["num_users_skipped"] == expected_users.num_users_skipped
    assert skipped["num_impressions_skipped"] == expected_users.num_impressions_skipped
    assert skipped["num_positives_skipped"] == expected_users.num_positives_skipped


def test_intervals_agree_with_resampling_users_one_draw_at_a_time() -> None:
    num_users, num_draws = USERS_PER_BLOCK, 400  # one block, so that the draws can be made again
    frame = world(num_users, per_user=8, seed=3)
    a, b = scored(frame, 1.0, 1), scored(frame, 2.5, 2)
    table = compare(line_up([Run("b", 0, b), Run("a", 0, a)]), baseline="b", num_draws=num_draws, seed=5)
    weights = poisson_weights(num_users, num_draws, np.random.default_rng(5))
    number = a["user_id"].rank("dense").to_numpy() - 1
    clicked = a["clicked"].to_numpy()
    gains: dict[str, list[float]] = {"auc": [], "uauc": [], "wuauc": []}
    kept = [u for u in range(num_users) if len(set(clicked[number == u])) == 2]
    by_user = [
        np.array([roc_auc_score(clicked[number == u], p["p_ctr"].to_numpy()[number == u]) for u in kept])
        for p in (a, b)
    ]
    sizes = np.array([(number == u).sum() for u in kept])
    for draw in weights.T:
        pooled = [roc_auc_score(clicked, p["p_ctr"].to_numpy(), sample_weight=draw[number]) for p in (a, b)]
        gains["auc"].append(pooled[0] - pooled[1])
        difference = by_user[0] - by_user[1]
        gains["uauc"].append(np.average(difference, weights=draw[kept]))
        gains["wuauc"].append(np.average(difference, weights=draw[kept] * sizes))
    for metric, draws in gains.items():
        row = one(table, ranker="a", metric=metric)
        # UAUC and WUAUC are exact; the pooled AUC is resampled to first order
        tolerance = 0.002 if metric == "auc" else 1e-9
        assert row["gain_low"] == pytest.approx(np.quantile(draws, 0.025), abs=tolerance)
        assert row["gain_high"] == pytest.approx(np.quantile(draws, 0.975), abs=tolerance)


def test_pairing_makes_the_interval_of_a_gain_narrower_than_that_of_a_value() -> None:
    frame = world()
    close = scored(frame, 1.0, 1).with_columns(p_ctr=pl.col("p_ctr") ** 1.01 + 1e-4 * pl.col("p_cvr").reverse())
    table = compare(line_up([Run("a", 0, scored(frame, 1.0, 1)), Run("b", 0, close)]), baseline="a", num_draws=200)
    row = one(table, ranker="b")
    assert row["gain_high"] - row["gain_low"] < 0.2 * (row["high"] - row["low"])


def test_a_ranker_against_itself_shows_no_difference_at_all() -> None:
    predictions = scored(world(), 1.0, 1)
    table = compare(line_up([Run("a", 0, predictions), Run("b", 0, predictions)]), baseline="a", num_draws=100)
    b = table.filter(ranker="b")
    assert b["gain"].abs().max() == 0.0
    assert b["gain_low"].abs().max() == 0.0
    assert set(b["verdict"]) <= {"no difference", "cannot tell"}
    assert b["p_value"].drop_nulls().min() == 1.0


def test_a_gain_planted_in_cold_users_is_found_there_and_not_elsewhere() -> None:
    frame = world(600, 20)
    content = scored(frame, 1.5, 2, better_on=pl.col("user_segment") == "cold_start")
    table = compare(line_up([Run("base", 0, scored(frame, 1.5, 1)), Run("content", 0, content)]), baseline="base")
    cold = one(table, ranker="content", segment_kind="user_segment", segment="cold_start")
    others = one(table, ranker="content", segment_kind="user_segment", segment="others")
    assert cold["verdict"] == "better"
    assert cold["gain_low"] > 0
    assert others["verdict"] == "no difference"
    assert one(table, ranker="base", segment_kind="all")["verdict"] is None


def test_the_minimum_detectable_difference_follows_the_spread_of_the_gain() -> None:
    frame = world(300)
    runs = [Run("a", 0, scored(frame, 1.0, 1)), Run("b", 0, scored(frame, 1.0, 2))]
    row = one(compare(line_up(runs), baseline="a", num_draws=2000), ranker="b")
    # 1.96 + 0.84 standard errors, and the interval is 2 * 1.96 of them wide
    width = row["gain_high"] - row["gain_low"]
    assert row["minimum_detectable"] == pytest.approx((1.96 + 0.8416) / (2 * 1.96) * width, rel=0.05)
    assert one(compare(line_up(runs), baseline=None))["minimum_detectable"] is None


def test_a_kind_that_is_added_changes_no_verdict_on_the_tiers() -> None:
    """Overall and the tiers are one family, each further kind one by itself: worked by hand from single p-values."""
    frame = world().with_columns(shelf=pl.concat_str(pl.lit("s"), pl.int_range(pl.len()) % 8).cast(pl.String))
    runs = [Run("base", 0, scored(frame, 1.0, 1)), Run("new", 0, scored(frame, 0.9, 2))]

    def p_values(*kinds: str) -> dict[tuple[str, str], float]:
        table = compare(line_up(runs, segment_kinds=kinds), baseline="base", num_draws=200, min_users=5)
        found = table.filter(ranker="new", label="clicked", metric="uauc")
        return {row["segment_kind"] + row["segment"]: row["p_value"] for row in found.iter_rows(named=True)}

    alone, with_shelf = p_values("user_segment"), p_values("user_segment", "shelf")
    assert len(with_shelf) == len(alone) + 8
    assert {name: with_shelf[name] for name in alone} == alone
    single = {}
    for kind in ("user_segment", "shelf"):
        for segment in frame[kind].unique():
            one_cell = frame.with_columns(mine=pl.when(pl.col(kind) == segment).then(pl.lit("in")))
            cell_runs = [Run("base", 0, scored(one_cell, 1.0, 1)), Run("new", 0, scored(one_cell, 0.9, 2))]
            table = compare(line_up(cell_runs, segment_kinds=["mine"]), baseline="base", num_draws=200, min_users=5)
            single[kind, segment] = one(table, ranker="new", segment="in")["p_value"]
    shelves = sorted((p, segment) for (kind, segment), p in single.items() if kind == "shelf")
    running = 0.0
    for step, (p, segment) in enumerate(shelves):
        running = max(running, min(1.0, p * (len(shelves) - step)))
        assert with_shelf[f"shelf{segment}"] == pytest.approx(running)


@pytest.mark.parametrize("limit", [{"min_users": 10_000}, {"min_positives": 10_000}])
def test_a_cell_that_is_too_small_cannot_tell(limit: dict[str, int]) -> None:
    frame = world(60)
    runs = [Run("a", 0, scored(frame, 3.0, 1)), Run("b", 0, scored(frame, 0.1, 2))]
    table = compare(line_up(runs), baseline="a", num_draws=50, **limit)
    assert set(table.filter(ranker="b")["verdict"]) == {"cannot tell"}
    assert table.filter(ranker="b")["p_value"].null_count() == table.filter(ranker="b").height
    assert table["minimum_detectable"].null_count() == table.height
    assert one(table, ranker="b")["gain"] > 0


def test_with_several_seeds_the_value_is_their_mean_beside_their_spread() -> None:
    frame = world()
    seeds = [scored(frame, 1.0, seed) for seed in range(3)]
    table = compare(line_up([Run("a", s, p) for s, p in enumerate(seeds)]), baseline=None, num_draws=50)
    values = [uauc(p, "clicked", "p_ctr").value for p in seeds]
    row = one(table)
    assert row["value"] == pytest.approx(np.mean(values))
    assert row["seed_standard_deviation"] == pytest.approx(np.std(values, ddof=1))
    assert row["num_seeds"] == 3


def test_row_order_changes_nothing() -> None:
    frame = world(80)
    a, b = scored(frame, 1.0, 1), scored(frame, 2.0, 2)
    mixed = a.sample(fraction=1.0, shuffle=True, seed=1), b.sample(fraction=1.0, shuffle=True, seed=2)
    ours = compare(line_up([Run("a", 0, a), Run("b", 0, b)]), baseline="a", num_draws=50)
    theirs = compare(line_up([Run("a", 0, mixed[0]), Run("b", 0, mixed[1])]), baseline="a", num_draws=50)
    assert_frame_equal(ours, theirs, abs_tol=1e-9)


def test_without_conversions_only_clicks_are_judged() -> None:
    frame = scored(world(), 1.0, 1)
    bare = frame.select("impression_id", "user_id", "clicked", "p_ctr")
    table = compare(line_up([Run("a", 0, bare)]), baseline=None, num_draws=20)
    assert set(table["label"]) == {"clicked"}
    assert set(table["segment_kind"]) == {"all"}


def test_impressions_whose_outcome_is_not_known_yet_are_left_out_of_conversions_only() -> None:
    frame = scored(world(), 1.0, 1).with_columns(
        converted=pl.when(pl.int_range(pl.len()) % 3 == 0).then(None).otherwise("converted")
    )
    table = compare(line_up([Run("a", 0, frame)]), baseline=None, num_draws=20)
    known = frame.filter(pl.col("converted").is_not_null())
    assert one(table, metric="auc")["num_impressions"] == frame.height
    assert one(table, metric="auc", label="clicked_and_converted")["num_impressions"] == known.height
    assert one(table, metric="auc", label="converted")["num_impressions"] == known["clicked"].sum()


def test_a_cell_without_positives_has_counts_and_no_value() -> None:
    frame = scored(world(), 1.0, 1).with_columns(clicked=pl.lit(False), converted=pl.lit(False))
    table = compare(line_up([Run("a", 0, frame), Run("b", 0, frame)]), baseline="a", num_draws=20)
    row = one(table, ranker="b", metric="auc")
    assert (row["value"], row["low"], row["gain"], row["p_value"]) == (None, None, None, None)
    assert row["verdict"] == "cannot tell"
    assert row["num_impressions"] == frame.height


def test_tiers_are_listed_from_cold_to_warm_and_overall_first() -> None:
    frame = scored(world(), 1.0, 1).with_columns(
        user_segment=pl.Series(["others", "long_tail", "cold_start", "zeta"] * 900)
    )
    table = compare(line_up([Run("a", 0, frame)]), baseline=None, num_draws=10)
    listed = table.filter(label="clicked", metric="auc")["segment"].to_list()
    assert listed == ["all", "cold_start", "long_tail", "others", "zeta", "cold_start", "others"]


def test_an_unknown_baseline_is_refused() -> None:
    judged = line_up([Run("a", 0, scored(world(10), 1.0, 1))])
    with pytest.raises(ValueError, match=r"no ranker `base` to compare with; the predictions are of \['a'\]"):
        compare(judged, baseline="base")


def test_a_broken_score_names_its_ranker() -> None:
    frame = scored(world(10), 1.0, 1).with_columns(p_ctr=pl.when(pl.int_range(pl.len()) > 0).then("p_ctr"))
    with pytest.raises(ValueError, match="ranker `a`: 1 null and 0 NaN scores in `p_ctr`"):
        compare(line_up([Run("a", 0, frame)]), baseline=None)
