"""Columns of a file that a team judges by: read as text, whatever they are, or refused with a reason."""

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from jobs.admission import TableError
from jobs.predictions_file import read_predictions

ROWS = 400
START = dt.datetime(2024, 3, 1, tzinfo=dt.timezone.utc)


def predictions() -> pl.DataFrame:
    row = pl.int_range(ROWS, eager=True)
    return pl.DataFrame(
        {
            "impression_id": row.cast(pl.String),
            "user_id": (row % 7).cast(pl.String),
            "item_id": (row % 11).cast(pl.String),
            "event_timestamp": START + row.cast(pl.Int64) * dt.timedelta(hours=6),
            "clicked": row % 3 == 0,
            "p_ctr": row / ROWS,
            "country": pl.Series(["de", "fr", " ", None]).gather(row % 4),
            "tier": row % 4,
            "rating": (row % 4).cast(pl.Float64),
            "share": (row % 4) / 4,
            "logged_in": row % 2 == 0,
            "day": pl.Series([START.date() + dt.timedelta(days=n) for n in range(3)]).gather(row % 3),
            "price": row * 3,
        }
    )


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def written(frame: pl.DataFrame, name: str = "mine.parquet") -> Path:
        path = tmp_path / name
        frame.write_csv(path) if name.endswith("csv") else frame.write_parquet(path)
        return path

    return written


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("country", ["de", "fr"]),
        ("tier", ["0", "1", "2", "3"]),
        ("rating", ["0", "1", "2", "3"]),
        ("share", ["0.0", "0.25", "0.5", "0.75"]),
        ("logged_in", ["false", "true"]),
        ("day", ["2024-03-01", "2024-03-02", "2024-03-03"]),
    ],
)
@pytest.mark.parametrize("name", ["mine.parquet", "mine.csv"])
def test_a_column_of_any_type_is_read_as_segments(
    write: Callable[..., Path], column: str, values: list[str], name: str
) -> None:
    frame = read_predictions(write(predictions(), name), [column]).frame
    assert frame.columns == ["impression_id", "user_id", "clicked", "p_ctr", column]
    assert frame[column].dtype == pl.String
    found = frame[column].drop_nulls().unique().sort().to_list()
    assert found == (["0.0", "1.0", "2.0", "3.0"] if (column, name) == ("rating", "mine.csv") else values)


def test_blanks_and_nulls_are_in_no_segment_and_counted(write: Callable[..., Path]) -> None:
    read = read_predictions(write(predictions()), ["country", "tier"])
    assert read.frame["country"].null_count() == ROWS / 2
    assert "mine.parquet: 200 rows have no `country`; they count overall only." in read.notes
    assert "mine.parquet: `tier` was Int64, read as text." in read.notes
    assert "mine.parquet: ignored columns rating, share, logged_in, day, price." in read.notes


def test_a_category_is_read_and_a_tier_may_be_named_again(write: Callable[..., Path]) -> None:
    frame = predictions().with_columns(pl.col("country").cast(pl.Categorical), item_segment=pl.lit("cold_start"))
    read = read_predictions(write(frame), ["country", "item_segment"])
    assert read.frame.columns[-2:] == ["item_segment", "country"]
    assert set(read.frame["country"].drop_nulls()) == {"de", "fr"}


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        ("contry", "has no column `contry` to judge by \\(is it `country`\\?\\); it has impression_id"),
        ("price", "`price` has 400 values; expected at most 200.*\n.*group them first: ranges of a number"),
        ("item_id", "`item_id` cannot be judged by: it is read as something else"),
        ("clicked", "`clicked` cannot be judged by"),
        ("user", "`user` cannot be judged by"),
        ("empty", "`empty` has no value in any row"),
        ("several", "`several` is List"),
        ("how_long", "`how_long` is Duration"),
    ],
)
def test_what_cannot_be_judged_by_is_refused_with_a_remedy(
    write: Callable[..., Path], segment: str, message: str
) -> None:
    frame = predictions().with_columns(
        empty=pl.lit(None, pl.String), several=pl.lit([1]), how_long=pl.lit(dt.timedelta(1)), user=pl.lit("x")
    )
    with pytest.raises(TableError, match=message):
        read_predictions(write(frame), [segment])


def test_runs_are_told_apart_even_where_judged_by(write: Callable[..., Path]) -> None:
    frame = predictions().with_columns(seed=pl.int_range(pl.len()) % 2)
    with pytest.raises(TableError, match="holds the predictions of 2 runs, told apart by seed"):
        read_predictions(write(frame), ["seed"])
