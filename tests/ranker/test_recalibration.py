"""Recalibration against sklearn, hand-worked blocks, and worlds whose error is known."""

import logging

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from ranker.calibration import calibration
from ranker.judged_runs import Run, line_up
from ranker.recalibration import (
    METHODS,
    IsotonicMap,
    Method,
    PlattMap,
    RunScore,
    fit_recalibration,
    fit_recalibrations,
    recalibrate_runs,
)

Vector = NDArray[np.float64]


def world(num_rows: int = 20_000, seed: int = 0) -> tuple[Vector, NDArray[np.bool_]]:
    """Probabilities and outcomes drawn from them."""
    rng = np.random.default_rng(seed)
    p = rng.beta(1, 12, num_rows)
    return p, rng.random(num_rows) < p


def ece(p: Vector, y: NDArray[np.bool_]) -> float:
    return calibration(pl.DataFrame({"p": p, "y": y}), "y", "p").expected_calibration_error


def test_isotonic_is_sklearns_between_the_end_blocks() -> None:
    p, y = world()
    theirs = IsotonicRegression(out_of_bounds="clip").fit(p, y)
    unseen = np.random.default_rng(1).random(5000)
    expected = theirs.predict(unseen)
    inside = (expected > 0) & (expected < 1)
    ours = fit_recalibration("isotonic", p, y).apply(unseen)
    np.testing.assert_allclose(ours[inside], expected[inside], rtol=1e-12)
    assert inside.mean() > 0.3


def test_an_isotonic_end_block_is_as_sure_as_its_rows_allow() -> None:
    p = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    y = np.array([False, False, False, True, False, True, True])
    fitted = fit_recalibration("isotonic", p, y)
    # blocks: three negatives, one of each, two positives
    np.testing.assert_allclose(fitted.apply(p), [0.5 / 4] * 3 + [0.5] * 2 + [2.5 / 3] * 2)


def test_an_end_block_never_overtakes_its_neighbour() -> None:
    p = np.concatenate(([0.1], np.full(1000, 0.5), [0.9]))
    y = np.concatenate(([False], np.arange(1000) < 1, [False]))
    fitted = fit_recalibration("isotonic", p, y)
    assert fitted.apply(p).max() < 0.002
    assert (np.diff(fitted.apply(np.sort(p))) >= 0).all()


def test_platt_is_sklearns_sigmoid_calibration_of_the_logit() -> None:
    p, y = world(5000)
    logit = np.log(p / (1 - p))[:, None]
    identity = LogisticRegression(C=np.inf).fit(logit, y)  # CalibratedClassifierCV reads its decision function
    theirs = CalibratedClassifierCV(FrozenEstimator(identity), method="sigmoid").fit(logit, y)
    ours = fit_recalibration("platt", p, y).apply(p)
    np.testing.assert_allclose(ours, theirs.predict_proba(logit)[:, 1], rtol=1e-4)


def test_platt_finds_the_distortion_that_was_put_in() -> None:
    p, y = world(200_000)
    logit = np.log(p / (1 - p))
    distorted = 1 / (1 + np.exp(-(2.0 * logit + 1.0)))
    fitted = fit_recalibration("platt", distorted, y)
    assert isinstance(fitted, PlattMap)
    assert fitted.slope == pytest.approx(0.5, rel=0.03)
    assert fitted.intercept == pytest.approx(-0.5, abs=0.06)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("distort", [lambda p: p**2, lambda p: p / 10, np.sqrt], ids=["p**2", "p/10", "sqrt(p)"])
def test_a_distortion_is_mended_on_rows_that_the_map_has_not_seen(method: Method, distort: object) -> None:
    p, y = world(seed=1)
    unseen, outcome = world(seed=2)
    fitted = fit_recalibration(method, distort(p), y)  # type: ignore[operator]
    scored = distort(unseen)  # type: ignore[operator]
    mended = fitted.apply(scored)
    assert ece(mended, outcome) < 0.3 * ece(scored, outcome)
    assert log_loss(outcome, mended) < log_loss(outcome, scored)
    assert mended.mean() == pytest.approx(outcome.mean(), rel=0.06)  # three standard errors


@pytest.mark.parametrize(("method", "parameters"), [("platt", 2), ("isotonic", 60)])
def test_right_probabilities_are_not_made_worse_beyond_noise(method: Method, parameters: int) -> None:
    """A fit of k parameters on n rows costs about k/(2n) nats on new ones: Wilks; isotonic has some 60 blocks here."""
    p, y = world(seed=3)
    unseen, outcome = world(100_000, seed=4)
    mended = fit_recalibration(method, p, y).apply(unseen)
    excess = np.where(outcome, np.log(unseen / mended), np.log((1 - unseen) / (1 - mended)))
    bound = 3 * parameters / (2 * len(p)) + 3 * excess.std() / np.sqrt(len(unseen))
    assert excess.mean() < bound


def test_platt_keeps_the_order_and_isotonic_only_adds_ties() -> None:
    p, y = world()
    platt, isotonic = (fit_recalibration(method, p, y).apply(p) for method in ("platt", "isotonic"))
    assert roc_auc_score(y, platt) == roc_auc_score(y, p)
    assert len(np.unique(isotonic)) < len(np.unique(p))
    assert roc_auc_score(y, isotonic) == pytest.approx(roc_auc_score(y, p), abs=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_an_order_that_is_upside_down_is_flattened_not_reversed(method: Method) -> None:
    p, y = world()
    mended = fit_recalibration(method, 1 - p, y).apply(np.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(mended, y.mean(), rtol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_separable_classes_give_a_finite_map(method: Method) -> None:
    p = np.linspace(0, 1, 1000)
    mended = fit_recalibration(method, p, p > 0.5).apply(p)
    assert 0 < mended.min() < 0.01 < 0.99 < mended.max() <= 1


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_becomes_the_observed_rate(method: Method) -> None:
    fitted = fit_recalibration(method, np.full(4, 0.9), np.array([True, False, False, False]))
    np.testing.assert_allclose(fitted.apply(np.array([0.0, 0.9, 1.0])), 0.25)


@settings(max_examples=60, deadline=None)
@given(
    data=st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=40),
    method=st.sampled_from(METHODS),
    shuffle=st.integers(0, 100),
)
def test_a_map_never_decreases_stays_inside_and_does_not_see_the_order_of_rows(
    data: list[tuple[float, bool]], method: Method, shuffle: int
) -> None:
    p, y = np.array([one for one, _ in data]), np.array([one for _, one in data])
    if y.all() or not y.any():
        with pytest.raises(ValueError, match="expected rows of both classes"):
            fit_recalibration(method, p, y)
        return
    grid = np.linspace(0, 1, 101)
    mended = fit_recalibration(method, p, y).apply(grid)
    assert (np.diff(mended) >= 0).all()
    assert mended.min() >= 0
    assert mended.max() <= 1
    order = np.random.default_rng(shuffle).permutation(len(p))
    np.testing.assert_allclose(fit_recalibration(method, p[order], y[order]).apply(grid), mended, atol=1e-3)


@pytest.mark.parametrize("wrong", [-0.1, 1.5, np.nan])
def test_what_is_no_probability_is_refused_when_fitted_and_when_applied(wrong: float) -> None:
    p, y = np.array([0.1, wrong, 0.3]), np.array([True, False, False])
    for attempt in (
        lambda: fit_recalibration("platt", p, y),
        lambda: PlattMap(1.0, 0.0).apply(p),
        lambda: IsotonicMap(np.array([0.0, 1.0]), np.array([0.1, 0.9])).apply(p),
    ):
        with pytest.raises(ValueError, match="1 of 3 values are no probabilities"):
            attempt()


def test_other_mistakes_are_named() -> None:
    p, y = world(10)
    with pytest.raises(ValueError, match="no method 'beta'; the methods are isotonic, platt"):
        fit_recalibration("beta", p, y)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="labels must be Boolean"):
        fit_recalibration("platt", p, y.astype(float))
    with pytest.raises(ValueError, match="as many labels as probabilities"):
        fit_recalibration("platt", p, y[1:])
    with pytest.raises(ValueError, match="at least one"):
        fit_recalibration("platt", p[:0], y[:0])


def predictions(seed: int, num_rows: int = 6000) -> pl.DataFrame:
    """A log with late conversions; p_ctr promises a tenth of what comes, p_cvr is right, p_ctcvr is raw."""
    rng = np.random.default_rng(seed)
    p_ctr, p_cvr = rng.beta(2, 6, num_rows), rng.beta(2, 4, num_rows)
    clicked = rng.random(num_rows) < p_ctr
    converted = pl.Series(clicked & (rng.random(num_rows) < p_cvr))
    known = pl.Series(rng.random(num_rows) < 0.8)
    return pl.DataFrame(
        {
            "impression_id": [f"{seed}-{n}" for n in range(num_rows)],
            "user_id": [f"u{n % 50}" for n in range(num_rows)],
            "clicked": clicked,
            "p_ctr": p_ctr / 10,
            "p_cvr": p_cvr,
            "p_ctcvr": 100 * p_ctr * p_cvr,
        }
    ).with_columns(converted=pl.when(known).then(converted))


def test_every_score_is_fitted_to_its_own_label_on_its_own_rows() -> None:
    validation = predictions(1)
    fitted = fit_recalibrations([Run("a", 0, validation)])["platt"]
    assert set(fitted) == {RunScore("a", 0, "p_ctr"), RunScore("a", 0, "p_cvr")}, "a raw score has no calibration"
    clicks = validation.filter(pl.col("clicked") & pl.col("converted").is_not_null())
    alone = fit_recalibration("platt", clicks["p_cvr"].to_numpy(), clicks["converted"].to_numpy())
    assert fitted[RunScore("a", 0, "p_cvr")] == alone


def test_test_runs_are_mended_by_the_maps_of_their_own_ranker_and_seed() -> None:
    test = predictions(2)
    other = test.with_columns(p_ctr=pl.col("p_ctr") * 10)
    judged = line_up([Run("a", 0, test), Run("a", 1, other), Run("ceiling", 0, other)])
    validation = predictions(1)
    right = validation.with_columns(p_ctr=pl.col("p_ctr") * 10)
    fitted = fit_recalibrations([Run("a", 0, validation), Run("a", 1, right)], ["isotonic"])["isotonic"]
    mended = recalibrate_runs(judged, fitted)
    assert mended.impressions is judged.impressions
    for seed in (0, 1):
        assert mended.scores["a", seed].columns == ["p_ctr", "p_cvr"]
        assert mended.scores["a", seed]["p_ctr"].mean() == pytest.approx(test["clicked"].mean(), rel=0.1)
    assert mended.runs_with("p_ctr", "ceiling") == [], "nothing was fitted for it"


def test_a_label_without_positives_is_passed_over_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    validation = predictions(1).with_columns(converted=pl.lit(False))
    with caplog.at_level(logging.WARNING):
        fitted = fit_recalibrations([Run("a", 0, validation)])
    assert {key.score for key in fitted["platt"]} == {"p_ctr"}
    assert "p_cvr of `a`, seed 0, is not recalibrated" in caplog.text


def test_predictions_without_conversions_are_fitted_on_clicks_alone() -> None:
    validation = predictions(1).select("impression_id", "user_id", "clicked", "p_ctr")
    assert list(fit_recalibrations([Run("a", 0, validation)], ["platt"])["platt"]) == [RunScore("a", 0, "p_ctr")]
