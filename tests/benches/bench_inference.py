"""Can the verdicts be trusted, and what do they cost? False alarms, coverage, power and seconds.

    OMP_NUM_THREADS=1 pytest -m bench -s tests/benches/bench_inference.py

Two rankers see the true log-odds of the same impressions, each through noise of its own. 2,000 users with 20
impressions, three in ten clicked; tiers of users and items in thirds, so a table has seven cells. Every run is a new
log.
"""

import os
import time

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from ranker.auc import uauc
from ranker.comparison import DETECTABLE_DEVIATIONS, compare
from ranker.judged_runs import Run, line_up

NUM_RUNS = int(os.environ.get("TAILRANK_BENCH_RUNS", "200"))
NUM_USERS = 2000
PER_USER = 20
NOISE = 1.0
TIERS = np.array(["cold_start", "long_tail", "others"])


def log(num_users: int, seed: int, cold_noise: float) -> list[Run]:
    """`old` and `new`; `new` has other noise on items of the first tier."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(num_users), PER_USER)
    item_tier = rng.integers(0, 3, len(user))
    logit = -1.2 + rng.normal(0, 0.8, num_users)[user] + rng.normal(0, 1.2, len(user))
    clicked = rng.random(len(user)) < 1 / (1 + np.exp(-logit))
    both_miss = rng.normal(0, 0.8, len(user))

    def predictions(noise: NDArray[np.float64] | float) -> pl.DataFrame:
        seen = logit + both_miss + rng.normal(0, 1, len(user)) * noise
        return pl.DataFrame(
            {
                "impression_id": np.arange(len(user)),
                "user_id": user,
                "clicked": clicked,
                "p_ctr": 1 / (1 + np.exp(-seen)),
                "user_segment": TIERS[user % 3],
                "item_segment": TIERS[item_tier],
            }
        )

    return [
        Run("old", 0, predictions(NOISE)),
        Run("new", 0, predictions(np.where(item_tier == 0, cold_noise, NOISE))),
    ]


def table(num_users: int, seed: int, cold_noise: float, num_draws: int = 1000) -> pl.DataFrame:
    judged = line_up(log(num_users, seed, cold_noise))
    return compare(judged, baseline="old", num_draws=num_draws, seed=seed).filter(ranker="new", metric="uauc")


def true_gain(cold_noise: float, num_users: int = 300_000) -> tuple[float, float]:
    """On cold items and overall, of many users."""
    runs = log(num_users, 987, cold_noise)
    values = []
    for where in (pl.col("item_segment") == "cold_start", pl.lit(True)):
        old, new = (uauc(run.predictions.filter(where), "clicked", "p_ctr").value or np.nan for run in runs)
        values.append(new - old)
    return values[0], values[1]


def noise_that_gains(gain: float) -> float:
    """The noise on cold items that makes UAUC there so much better."""
    low, high = 0.0, NOISE
    for _ in range(9):
        middle = (low + high) / 2
        low, high = (middle, high) if true_gain(middle, 100_000)[0] > gain else (low, middle)
    return (low + high) / 2


@pytest.mark.bench
def test_rankers_of_equal_skill_raise_at_most_five_percent_of_false_alarms() -> None:
    runs = [table(NUM_USERS, seed, NOISE) for seed in range(NUM_RUNS)]
    alarms = sum(bool(run["verdict"].is_in(["better", "worse"]).any()) for run in runs)
    cells = pl.concat(runs)
    covered = ((cells["gain_low"] <= 0) & (cells["gain_high"] >= 0)).mean()
    overall = cells.filter(segment_kind="all")
    covered_overall = ((overall["gain_low"] <= 0) & (overall["gain_high"] >= 0)).mean()
    ratio = (cells["minimum_detectable"] / DETECTABLE_DEVIATIONS).mean() / np.sqrt((cells["gain"] ** 2).mean())
    error = np.sqrt(0.05 * 0.95 / NUM_RUNS)
    print(
        f"\n{NUM_RUNS} A/A runs of {NUM_USERS:,} users, {runs[0].height} cells: {alarms} with a false alarm "
        f"({alarms / NUM_RUNS:.1%}, 5% +- {error:.1%} expected at most); the 95% interval holds the true gain in "
        f"{covered_overall:.1%} of runs overall, {covered:.1%} of cells; standard error / spread {ratio:.3f}"
    )
    assert alarms / NUM_RUNS <= 0.05 + 2.5 * error
    assert abs(covered_overall - 0.95) <= 3 * error


@pytest.mark.bench
def test_a_hundredth_more_on_cold_items_is_found() -> None:
    noise = noise_that_gains(0.01)
    cold_gain, gain = true_gain(noise)
    print(f"\ntrue gain of UAUC: {cold_gain:+.4f} on cold items, {gain:+.4f} overall")
    for num_users in (2000, 8000, 20_000):
        runs = [table(num_users, 10_000 + seed, noise) for seed in range(min(NUM_RUNS, 100))]
        cold = pl.concat(run.filter(segment_kind="item_segment", segment="cold_start") for run in runs)
        warm = pl.concat(run.filter(pl.col("segment_kind") == "item_segment", segment="others") for run in runs)
        covered = ((cold["gain_low"] <= cold_gain) & (cold["gain_high"] >= cold_gain)).mean()
        alone = (cold["gain_low"] > 0).mean()
        found = (cold["verdict"] == "better").mean()
        elsewhere = warm["verdict"].is_in(["better", "worse"]).mean()
        print(
            f"{num_users:>7,} users, {len(runs)} runs: found on cold items by {found:.0%} after Holm over 7 cells, "
            f"{alone:.0%} alone; minimum detectable {cold['minimum_detectable'].mean():.4f}; the interval holds the "
            f"true gain in {covered:.0%}; false alarms on the items of another tier {elsewhere:.0%}"
        )
    assert alone is not None
    assert alone > 0.9


@pytest.mark.bench
def test_a_thousand_draws_of_twenty_thousand_users_take_seconds() -> None:
    judged = line_up(log(20_000, 1, 0.9))
    started, cpu = time.perf_counter(), time.process_time()
    compare(judged, baseline="old", num_draws=1000)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    print(
        f"\n400,000 impressions of 20,000 users, 7 cells, 2 rankers, 1,000 draws: {seconds:.2f} s, {cpu:.2f} s of CPU"
    )
    assert seconds < 10
