"""Calibration against sklearn, hand-worked cases and the worlds in which it is known."""

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import log_loss

from ranker.calibration import NUM_BINS, calibrate_runs, calibration, mean_over_seeds
from ranker.judged_runs import Run, line_up


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
    ours, theirs = (calibration(f, "clicked", "p") for f in (frame, shuffled))
    assert ours.expected_calibration_error == pytest.approx(theirs.expected_calibration_error)
    assert [b.num_impressions for b in ours.bins] == [b.num_impressions for b in theirs.bins]


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
