"""Other definitions on a terminal, beside the judged values of every outcome."""

import io

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from jobs.definitions_table import definitions_table, reconcile, reconciliation_json
from ranker.comparison import compare
from ranker.judged_runs import JudgedRuns, Run, line_up


@pytest.fixture(scope="module")
def judged() -> JudgedRuns:
    rng = np.random.default_rng(0)
    n = 3000
    clicked = rng.random(n) < 0.3
    frame = pl.DataFrame(
        {
            "impression_id": np.arange(n).astype(str),
            "user_id": (rng.zipf(1.4, n) % 400).astype(str),
            "clicked": clicked,
            "converted": pl.Series(clicked & (rng.random(n) < 0.5)).set(pl.Series(rng.random(n) < 0.1), None),
        }
    )
    names = ("base", "a_ranker_with_a_long_name")
    runs = [
        Run(name, 0, frame.with_columns(p_ctr=rng.integers(0, 30, n) / 30, p_cvr=rng.random(n), p_ctcvr=rng.random(n)))
        for name in names
    ]
    return line_up([*runs, Run("base", 1, runs[0].predictions.with_columns(p_ctr=rng.random(n)))])


def test_ours_among_them_are_the_judged_values_of_the_first_seed(judged: JudgedRuns) -> None:
    alone = JudgedRuns(
        judged.impressions, judged.num_users, judged.segment_kinds, dict(list(judged.scores.items())[:2])
    )
    table = compare(alone, baseline=None, num_draws=20)
    found = reconcile(judged)
    assert set(found) == {"clicked", "converted", "clicked_and_converted"}
    for row in table.iter_rows(named=True):
        values = {one.name.lower(): one for one in found[row["label"]][row["ranker"]].values}
        one = values[row["metric"]]
        assert one.value == pytest.approx(row["value"], abs=1e-12)
        assert (one.num_users, one.num_users_left_out) == (row["num_users"], row["num_users_skipped"])
        assert one.share_impressions_left_out == pytest.approx(row["num_impressions_skipped"] / row["num_impressions"])


def test_the_table_fits_80_columns_and_warns_of_ties(judged: JudgedRuns) -> None:
    found = reconcile(judged)
    console = Console(file=io.StringIO(), width=80)
    console.print(definitions_table(found["clicked"]))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, printed.splitlines())) <= 80
    assert "…" not in printed
    for one in found["clicked"]["base"].values:
        assert one.name in printed
        assert f"{one.value:.4f}" in printed
    assert "Ties of base. " in printed
    assert "FuxiCTR" in printed


def test_json_holds_every_outcome_and_ranker(judged: JudgedRuns) -> None:
    written = reconciliation_json(reconcile(judged))
    assert set(written["converted"]) == {"base", "a_ranker_with_a_long_name"}
    assert written["clicked"]["base"]["values"][0]["name"] == "UAUC"
