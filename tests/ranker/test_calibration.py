"""Calibration against sklearn, hand-worked cases and the worlds in which it is known."""

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from ranker.calibration import calibrate_runs, calibrate_segments, calibration, mean_over_seeds, score_histograms
from ranker.calibration_cells import FIGURES, NUM_BINS
from ranker.judged_runs import LABELS, Run, line_up
from ranker.recalibration import fit_recalibrations, recalibrate_runs


def world(num_rows: int = 40_000, seed: int = 0) -> pl.DataFrame:
    """Outcomes drawn from the very probabilities."""
    rng = np.random.default_rng(seed)
    p = rng.beta(1, 12, num_rows)
    return pl.DataFrame({"p": p, "clicked": rng.random(num_rows) < p})


def test_log_loss_agrees_with_sklearn() -> None:
    frame = world()
    assert calibration(frame, "clicked", "p").log_loss == pytest.approx(log_loss(frame["clicked"], frame["p"]))


def test_true_probabilities_are_calibrated() -> None:
    result = calibration(world(), "clicked", "p")
    assert result.predicted_over_observed == pytest.approx(1.0, abs=0.05)
    assert result.expected_calibration_error < 0.01
    assert result.normalised_entropy is not None
    assert result.normalised_entropy < 1.0


def test_promising_twice_what_comes_shows_as_two() -> None:
    frame = world().with_columns(p=pl.col("p").clip(0, 0.5) * 2)
    truth = calibration(world().with_columns(p=pl.col("p").clip(0, 0.5)), "clicked", "p")
    assert truth.predicted_over_observed is not None
    assert calibration(frame, "clicked", "p").predicted_over_observed == pytest.approx(
        2 * truth.predicted_over_observed
    )


def test_saying_the_observed_rate_has_a_normalised_entropy_of_one() -> None:
    frame = world()
    constant = frame.with_columns(p=pl.lit(frame["clicked"].mean()))
    result = calibration(constant, "clicked", "p")
    assert result.normalised_entropy == pytest.approx(1.0)
    assert result.expected_calibration_error == pytest.approx(0.0, abs=1e-12)
    assert len(result.bins) == 1


def test_worked_by_hand() -> None:
    frame = pl.DataFrame({"p": [0.2, 0.8], "clicked": [False, True]})
    result = calibration(frame, "clicked", "p")
    assert result.log_loss == pytest.approx(-np.log(0.8))
    assert result.expected_calibration_error == pytest.approx(0.2)
    assert result.predicted_over_observed == pytest.approx(1.0)
    assert result.normalised_entropy == pytest.approx(np.log(0.8) / np.log(0.5))


def test_bins_hold_equal_numbers_and_every_row() -> None:
    bins = calibration(world(), "clicked", "p").bins
    assert len(bins) == NUM_BINS
    assert sum(b.num_impressions for b in bins) == 40_000
    assert max(b.num_impressions for b in bins) - min(b.num_impressions for b in bins) <= 2
    assert [b.mean_predicted for b in bins] == sorted(b.mean_predicted for b in bins)


def test_row_order_does_not_matter_even_among_ties() -> None:
    frame = world().with_columns(p=pl.col("p").round(2))
    shuffled = frame.sample(fraction=1.0, shuffle=True, seed=1)
    assert calibration(frame, "clicked", "p") == calibration(shuffled, "clicked", "p")


def test_certain_and_wrong_costs_much_but_not_infinitely_much() -> None:
    frame = pl.DataFrame({"p": [0.0, 1.0], "clicked": [True, False]})
    assert calibration(frame, "clicked", "p").log_loss == pytest.approx(-np.log(1e-7), rel=1e-6)


def test_without_positives_there_is_no_ratio() -> None:
    frame = pl.DataFrame({"p": [0.1, 0.2], "clicked": [False, False]})
    result = calibration(frame, "clicked", "p")
    assert result.predicted_over_observed is None
    assert result.normalised_entropy is None


@pytest.mark.parametrize("scores", [[-0.1, 0.5], [0.5, 3.0]])
def test_a_score_that_is_no_probability_is_refused(scores: list[float]) -> None:
    frame = pl.DataFrame({"p": scores, "clicked": [False, True]})
    with pytest.raises(ValueError, match=r"expected probabilities in \[0, 1\], got"):
        calibration(frame, "clicked", "p")


def test_an_empty_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one row, got none"):
        calibration(world().clear(), "clicked", "p")


def test_a_mean_over_seeds_needs_every_seed() -> None:
    full = calibration(world(seed=1), "clicked", "p")
    empty = calibration(pl.DataFrame({"p": [0.1], "clicked": [False]}), "clicked", "p")
    assert mean_over_seeds([full, full], "log_loss") == pytest.approx(full.log_loss)
    assert mean_over_seeds([full, empty], "normalised_entropy") is None


def test_every_run_with_probabilities_is_calibrated_and_a_raw_score_is_not() -> None:
    frame = (
        world(1000)
        .with_row_index("impression_id")
        .select("impression_id", "clicked", p_ctr="p", user_id="impression_id")
    )
    raw = frame.with_columns(p_ctr=pl.col("p_ctr") * 100)
    runs = calibrate_runs(line_up([Run("a", 0, frame), Run("a", 1, frame), Run("raw", 0, raw)]))
    assert {key: len(several) for key, several in runs.items()} == {("clicked", "a"): 2}
    assert runs["clicked", "a"][0] == calibration(frame, "clicked", "p_ctr")


def log(num_rows: int = 30_000, seed: int = 0) -> pl.DataFrame:
    """Impressions of three segments with true probabilities of clicks, and of conversions that are known for most."""
    rng = np.random.default_rng(seed)
    p_ctr, p_cvr = rng.beta(2, 12, num_rows), rng.beta(2, 6, num_rows)
    clicked = rng.random(num_rows) < p_ctr
    return pl.DataFrame(
        {
            "impression_id": [f"{seed}-{row}" for row in range(num_rows)],
            "user_id": [f"u{row}" for row in rng.integers(0, 200, num_rows)],
            "clicked": clicked,
            "converted": clicked & (rng.random(num_rows) < p_cvr),
            "p_ctr": p_ctr,
            "p_cvr": p_cvr,
            "p_ctcvr": p_ctr * p_cvr,
            "item_segment": rng.choice(["others", "cold_start", "long_tail"], num_rows, p=[0.6, 0.1, 0.3]),
            "brand": rng.choice(["b", "a", "none"], num_rows),
        }
    ).with_columns(
        converted=pl.when(pl.Series(rng.random(num_rows) < 0.9)).then("converted"),
        brand=pl.when(pl.col("brand") != "none").then("brand"),
    )


def overpromise_cold(frame: pl.DataFrame) -> pl.DataFrame:
    """p_ctr is three times too high on cold items, and right elsewhere."""
    cold = pl.col("item_segment") == "cold_start"
    return frame.with_columns(p_ctr=pl.when(cold).then((pl.col("p_ctr") * 3).clip(0, 1)).otherwise("p_ctr"))


KINDS = ("item_segment", "brand")


def test_every_cell_is_the_calibration_of_its_own_rows() -> None:
    frames = [log(6000), log(6000).with_columns(pl.col("p_ctr", "p_cvr").round(2).sqrt())]
    table = calibrate_segments(line_up([Run("a", seed, frame) for seed, frame in enumerate(frames)], KINDS))
    assert set(table["method"]) == {"as scored"}
    assert table.height == 3 * (1 + 3 + 2)
    for row in table.iter_rows(named=True):
        label = next(one for one in LABELS if one.name == row["label"])
        alone = []
        for frame in frames:
            rows = frame.with_columns(clicked_and_converted=pl.col("clicked") & pl.col("converted")).filter(label.rows)
            if row["segment_kind"] != "all":
                rows = rows.filter(pl.col(row["segment_kind"]) == row["segment"])
            alone.append(calibration(rows, label.name, label.score))
        assert row["num_impressions"] == alone[0].num_impressions
        assert row["num_positives"] == alone[0].num_positives
        assert row["num_seeds"] == 2
        for figure in FIGURES:
            assert row[figure] == pytest.approx(mean_over_seeds(alone, figure), rel=1e-12), figure


def test_a_cell_agrees_with_sklearn() -> None:
    frame = log().with_columns(p_ctr=pl.col("p_ctr") ** 2)
    table = calibrate_segments(line_up([Run("a", 0, frame)], KINDS))
    cold = frame.filter(item_segment="cold_start")
    row = table.row(by_predicate=(pl.col("segment") == "cold_start") & (pl.col("label") == "clicked"), named=True)
    y, p = cold["clicked"].to_numpy(), cold["p_ctr"].to_numpy()
    assert row["log_loss"] == pytest.approx(log_loss(y, p))
    assert row["normalised_entropy"] == pytest.approx(log_loss(y, p) / log_loss(y, np.full(len(y), y.mean())))
    observed, predicted = calibration_curve(y, p, n_bins=NUM_BINS, strategy="quantile")
    # sklearn's quantile bins differ from ours by a row at each border
    assert row["expected_calibration_error"] == pytest.approx(np.abs(observed - predicted).mean(), rel=0.02)


def test_segments_come_overall_first_and_tiers_from_cold_to_warm() -> None:
    table = calibrate_segments(line_up([Run("a", 0, log(3000))], KINDS)).filter(label="clicked")
    assert table["segment"].to_list() == ["all", "cold_start", "long_tail", "others", "a", "b"]
    assert table.filter(segment_kind="brand")["num_impressions"].sum() < 3000, "a null is in no segment"


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), decimals=st.sampled_from([1, 2, 17]), power=st.sampled_from([1, 2]))
def test_row_order_does_not_change_a_bit_of_any_cell(seed: int, decimals: int, power: int) -> None:
    frame = log(400, seed).with_columns(pl.col("p_ctr", "p_cvr", "p_ctcvr").round(decimals) ** power)
    shuffled = frame.sample(fraction=1.0, shuffle=True, seed=seed)
    ours, theirs = (
        calibrate_segments(judged, {"isotonic": judged})
        for judged in (line_up([Run("a", 0, each)], KINDS) for each in (frame, shuffled))
    )
    assert ours.equals(theirs)


def test_a_fault_of_one_segment_is_found_there_and_mended_on_unseen_rows() -> None:
    def judge(distort: Callable[[pl.DataFrame], pl.DataFrame]) -> pl.DataFrame:
        validation, test = distort(log(seed=1)), distort(log(seed=2))
        judged = line_up([Run("a", 0, test)], KINDS)
        fitted = fit_recalibrations([Run("a", 0, validation)])
        recalibrated = {method: recalibrate_runs(judged, maps) for method, maps in fitted.items()}
        return calibrate_segments(judged, recalibrated).filter(label="clicked")

    table = judge(overpromise_cold)
    scored = {row["segment"]: row for row in table.filter(method="as scored").iter_rows(named=True)}
    assert scored["cold_start"]["predicted_over_observed"] == pytest.approx(3.0, rel=0.15)
    assert scored["cold_start"]["expected_calibration_error"] > 0.2
    assert scored["others"]["predicted_over_observed"] == pytest.approx(1.0, abs=0.06)
    assert scored["long_tail"]["expected_calibration_error"] < 0.02
    # one map for all: overall is mended, the segment only in part, and that is what the table is for
    for method in ("isotonic", "platt"):
        mended = {row["segment"]: row for row in table.filter(method=method).iter_rows(named=True)}
        assert mended["all"]["predicted_over_observed"] == pytest.approx(1.0, abs=0.05)
        assert mended["all"]["log_loss"] < scored["all"]["log_loss"]
        assert mended["cold_start"]["predicted_over_observed"] > 1.3

    squared = judge(lambda frame: frame.with_columns(pl.col("p_ctr") ** 2))
    for row in squared.iter_rows(named=True):
        if row["method"] == "as scored":
            assert row["predicted_over_observed"] < 0.5
        else:
            assert row["predicted_over_observed"] == pytest.approx(1.0, abs=0.12)
            assert row["expected_calibration_error"] < 0.03


def test_right_probabilities_stay_as_good_within_the_bootstrap() -> None:
    """The log loss of a mended score is not above that of the true one by more than its bootstrap says noise does."""
    validation, test = log(seed=3), log(seed=4)
    maps = fit_recalibrations([Run("a", 0, validation)])
    judged = line_up([Run("a", 0, test)])
    y, p = test["clicked"].to_numpy(), test["p_ctr"].to_numpy()
    for method, fitted in maps.items():
        mended = recalibrate_runs(judged, fitted).scores["a", 0]["p_ctr"].to_numpy()
        excess = np.where(y, np.log(p / mended), np.log((1 - p) / (1 - mended)))
        rng = np.random.default_rng(0)
        draws = [excess[rng.integers(0, len(excess), len(excess))].mean() for _ in range(300)]
        # what 40 free numbers fitted on n rows cost on others, and the noise around it
        assert excess.mean() - 3 * np.std(draws) < 40 / (2 * len(y)), method


def test_a_score_that_nothing_was_fitted_for_has_no_mended_rows() -> None:
    frame = log(3000)
    judged = line_up([Run("a", 0, frame), Run("raw", 0, frame.with_columns(p_ctr=pl.col("p_ctr") * 9))])
    maps = fit_recalibrations([Run("a", 0, log(3000, seed=1).select("impression_id", "user_id", "clicked", "p_ctr"))])
    table = calibrate_segments(judged, {"platt": recalibrate_runs(judged, maps["platt"])})
    assert set(table.filter(ranker="a", label="clicked")["method"]) == {"as scored", "platt"}
    assert set(table.filter(ranker="a", label="converted")["method"]) == {"as scored"}
    assert table.filter(ranker="raw", label="clicked").is_empty()
    assert table.filter(ranker="raw", label="converted").height


def test_a_null_score_is_refused_in_segments_too() -> None:
    frame = log(100).with_columns(p_ctr=pl.when(pl.col("impression_id") != "0-3").then("p_ctr"))
    with pytest.raises(ValueError, match="1 null and 0 NaN scores in `p_ctr`"):
        calibrate_segments(line_up([Run("a", 0, frame)]))


def test_a_histogram_holds_every_row_on_the_scale_of_the_score() -> None:
    frame = log(5000)
    runs = [
        Run("small", 0, frame),
        Run("small", 1, frame.with_columns(p_ctr=pl.lit(0.5))),
        Run("raw", 0, frame.with_columns(p_ctr=pl.col("p_ctr") * 40 - 3)),
        Run("constant", 0, frame.with_columns(p_ctr=pl.lit(0.3))),
        Run("with a zero", 0, frame.with_columns(p_ctr=pl.when(pl.col("p_ctr") > 0.05).then("p_ctr").otherwise(0.0))),
    ]
    found = score_histograms(line_up(runs))
    assert {label for label, _ in found} == {"clicked", "converted", "clicked_and_converted"}
    for (label, ranker), one in found.items():
        assert one.positives.sum() + one.negatives.sum() == (
            5000
            if label == "clicked"
            else frame.filter(pl.col("converted").is_not_null() & (pl.col("clicked") | (label != "converted"))).height
        ), ranker
        assert (np.diff(one.edges) > 0).all()
        assert len(one.edges) == len(one.positives) + 1 == len(one.negatives) + 1
    assert found["clicked", "small"].positives.sum() == frame["clicked"].sum()
    assert found["clicked", "small"].is_logarithmic
    assert found["clicked", "with a zero"].is_logarithmic
    in_first = found["clicked", "with a zero"].positives[0] + found["clicked", "with a zero"].negatives[0]
    assert in_first == (frame["p_ctr"] <= 0.05).sum()
    assert not found["clicked", "raw"].is_logarithmic
    centres = found["clicked", "raw"].edges[:-1]
    assert np.average(centres, weights=found["clicked", "raw"].positives) > np.average(
        centres, weights=found["clicked", "raw"].negatives
    )
