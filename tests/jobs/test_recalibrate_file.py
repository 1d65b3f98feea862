"""Two files of predictions: one to fit on, one to mend."""

import datetime as dt
import logging
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from jobs.predictions_file import read_predictions
from jobs.recalibrate_file import read_validation, recalibrate_file
from ranker.calibration import calibration
from ranker.recalibration import METHODS, Method

START = dt.datetime(2025, 6, 1, tzinfo=dt.timezone.utc)


def draw(day: int, num_rows: int = 4000) -> pl.DataFrame:
    """One day of a model that promises a tenth of the clicks that come."""
    rng = np.random.default_rng(day)
    p, q = rng.beta(2, 5, num_rows), rng.beta(2, 4, num_rows)
    clicked = rng.random(num_rows) < p
    return pl.DataFrame(
        {
            "impression_id": [f"{day}-{row}" for row in range(num_rows)],
            "user_id": [f"u{row % 40}" for row in range(num_rows)],
            "item_id": [f"i{row % 30}" for row in range(num_rows)],
            "event_timestamp": [START + dt.timedelta(days=day, seconds=row) for row in range(num_rows)],
            "clicked": clicked,
            "converted": clicked & (rng.random(num_rows) < q),
            "p_ctr": p / 10,
            "p_cvr": q**2,
            "price_cents": rng.integers(1, 100, num_rows),
        }
    ).with_columns(p_cvr=pl.when(pl.Series(rng.random(num_rows) < 0.9)).then("p_cvr"))


def write(folder: Path, name: str, frame: pl.DataFrame) -> Path:
    path = folder / name
    frame.write_csv(path) if path.suffix == ".csv" else frame.write_parquet(path)
    return path


@pytest.mark.parametrize("method", METHODS)
def test_the_file_is_written_again_with_mended_probabilities_and_nothing_else_changed(
    tmp_path: Path, method: Method
) -> None:
    test, validation = draw(2), draw(1).drop("p_cvr")
    out = tmp_path / "out" / "mended.parquet"
    maps = recalibrate_file(
        write(tmp_path, "test.parquet", test), write(tmp_path, "validation.parquet", validation), out, method=method
    )
    mended = pl.read_parquet(out)
    assert list(maps) == ["p_ctr"]
    assert_frame_equal(mended.drop("p_ctr"), test.drop("p_ctr"))
    np.testing.assert_array_equal(mended["p_ctr"], maps["p_ctr"].apply(test["p_ctr"].to_numpy()))
    assert calibration(test, "clicked", "p_ctr").predicted_over_observed == pytest.approx(0.1, abs=0.01)
    assert calibration(mended, "clicked", "p_ctr").predicted_over_observed == pytest.approx(1.0, abs=0.11)  # 3 s.e.
    read_predictions(out)  # and it can be judged in turn


def test_a_score_that_is_missing_for_some_rows_stays_missing_there(tmp_path: Path) -> None:
    test = draw(2)
    known = draw(1).filter(pl.col("p_cvr").is_not_null())
    out = tmp_path / "mended.parquet"
    maps = recalibrate_file(write(tmp_path, "test.csv", test), write(tmp_path, "validation.parquet", known), out)
    mended = pl.read_parquet(out)
    assert list(maps) == ["p_ctr", "p_cvr"]
    assert mended["p_cvr"].is_null().equals(test["p_cvr"].is_null())
    clicks = mended.with_columns(truth=test["converted"], click=test["clicked"]).filter("click").drop_nulls("p_cvr")
    assert calibration(clicks, "truth", "p_cvr").predicted_over_observed == pytest.approx(1.0, abs=0.12)


def test_fitting_on_the_rows_that_are_judged_is_refused(tmp_path: Path) -> None:
    test = write(tmp_path, "test.parquet", draw(2))
    mixed = write(tmp_path, "mixed.parquet", pl.concat([draw(1), draw(2).head(5)]))
    with pytest.raises(ValueError, match=r"5 of 4_005 impressions \(such as 2-0, 2-1, 2-2\) are in .*other rows"):
        recalibrate_file(test, mixed, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_validation_that_is_not_earlier_is_noted(tmp_path: Path) -> None:
    paths = [write(tmp_path, f"{day}.parquet", draw(day)) for day in (1, 2)]
    early, late = (read_predictions(path) for path in paths)
    assert not any("earlier impressions only" in note for note in read_validation(paths[0], paths[1], late).notes)
    assert "2.parquet runs to 2025-06-03 01:06, and 1.parquet starts at 2025-06-02 00:00 UTC" in " ".join(
        read_validation(paths[1], paths[0], early).notes
    )


def test_a_raw_score_is_refused_and_one_beside_a_probability_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = [draw(day).with_columns(p_ctr=pl.col("p_ctr") * 100) for day in (1, 2)]
    paths = [write(tmp_path, f"{day}.parquet", frame.drop("p_cvr")) for day, frame in enumerate(raw)]
    with pytest.raises(ValueError, match="nothing to recalibrate by platt"):
        recalibrate_file(paths[1], paths[0], tmp_path / "out.parquet")
    whole = [write(tmp_path, f"{day}.parquet", frame.drop_nulls("p_cvr")) for day, frame in enumerate(raw)]
    with caplog.at_level(logging.WARNING):
        maps = recalibrate_file(whole[1], whole[0], tmp_path / "out.parquet")
    assert list(maps) == ["p_cvr"]
    assert "p_ctr stays as it is: 0.parquet gives no probabilities" in caplog.text
