"""Files judged part by part: the very numbers of all rows at once, and the same refusals."""

import datetime as dt
import io
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from rich.console import Console
from sklearn.metrics import roc_auc_score

from jobs.admission import TableError
from jobs.evaluate_predictions import run
from jobs.large_predictions import compare_large
from jobs.predictions_file import read_predictions
from ranker.comparison import compare
from ranker.judged_runs import Run, line_up

START = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
SIZES = {"num_draws": 60, "seed": 3, "min_users": 5, "min_positives": 5}
KINDS = ["user_segment", "item_segment", "country"]


def predictions(seed: int, num_rows: int = 450, num_users: int = 40) -> pl.DataFrame:
    """The same impressions for every seed, with ties, a busy user, unknown outcomes and rows of no segment."""
    world, rng = np.random.default_rng(0), np.random.default_rng(seed)
    user = np.minimum(world.zipf(1.3, num_rows), num_users)
    logit = world.normal(-0.5, 1.0, num_rows)
    clicked = world.random(num_rows) < 1 / (1 + np.exp(-logit))
    p = 1 / (1 + np.exp(-(logit + rng.normal(0, 1, num_rows))))
    p[world.random(num_rows) < 0.3] = 0.25  # many rows share a score
    return pl.DataFrame(
        {
            "impression_id": [f"i{i}" for i in world.permutation(num_rows)],
            "user_id": [f"u{u}" for u in user],
            "item_id": [f"p{i % 37}" for i in range(num_rows)],
            "event_timestamp": [START - dt.timedelta(minutes=i) for i in range(num_rows)],
            "clicked": clicked,
            "converted": pl.Series(clicked & (world.random(num_rows) < 0.5)).set(pl.Series(user % 5 == 0), None),
            "p_ctr": p,
            "p_cvr": rng.integers(0, 9, num_rows) / 9,
            "p_ctcvr": p * p,
            "user_segment": np.where(user % 3 == 0, "cold_start", "others"),
            "item_segment": pl.Series(["cold_start", "long_tail", None]).gather(world.integers(0, 3, num_rows)),
            "country": pl.Series(["de", "fr", None]).gather((np.arange(num_rows) > 150) * 2),
        }
    )


def at_once(new: Path, old: Path | None) -> pl.DataFrame:
    runs = [Run("new", 0, read_predictions(new, ["country"]).frame)]
    if old is not None:
        runs.append(Run("old", 0, read_predictions(old).frame))
    return compare(line_up(runs, segment_kinds=KINDS), baseline="old" if old else None, **SIZES)


def in_parts(new: Path, old: Path | None, rows_at_once: int) -> pl.DataFrame:
    files = {"new": new} | ({"old": old} if old is not None else {})
    found = compare_large(files, segment_kinds=KINDS, named_segments=["country"], rows_at_once=rows_at_once, **SIZES)
    return found.metrics


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    new, old = tmp_path / "new.parquet", tmp_path / "old.parquet"
    predictions(1).write_parquet(new)
    predictions(2).reverse().write_parquet(old)
    return new, old


@pytest.mark.parametrize("rows_at_once", [90, 333, 100_000])
def test_parts_add_up_to_the_very_bits_of_the_whole(files: tuple[Path, Path], rows_at_once: int) -> None:
    expected = at_once(*files)
    assert set(expected["label"]) == {"clicked", "converted", "clicked_and_converted"}
    assert set(expected["segment_kind"]) == {"all", *KINDS}
    assert_frame_equal(in_parts(*files, rows_at_once), expected, check_exact=True)


def test_one_file_is_judged_alone_as_csv_too(files: tuple[Path, Path]) -> None:
    new = files[0]
    expected = at_once(new, None)
    assert_frame_equal(in_parts(new, None, 200), expected, check_exact=True)
    frame = pl.read_parquet(new)
    frame.write_csv(new.with_suffix(".csv"))
    assert_frame_equal(in_parts(new.with_suffix(".csv"), None, 200), expected, check_exact=True)
    pooled = expected.filter(label="clicked", segment_kind="all", metric="auc")["value"].item()
    assert pooled == pytest.approx(roc_auc_score(frame["clicked"], frame["p_ctr"]), abs=1e-12)


@pytest.mark.parametrize(
    ("score", "conversions"),
    [
        (pl.lit(0.5), True),  # one score for all: a bucket cannot be cut
        (pl.col("p_ctr").cast(pl.Float32), True),
        (pl.col("p_ctr") * 20 - 10, False),  # no probability
        (pl.when(pl.col("p_ctr") > 0.9).then("p_ctr").otherwise(-1e300), False),
    ],
)
def test_any_score_is_ranked_alike(tmp_path: Path, score: pl.Expr, conversions: bool) -> None:
    path = tmp_path / "new.parquet"
    frame = predictions(1).with_columns(p_ctr=score)
    (frame if conversions else frame.drop("converted")).write_parquet(path)
    assert_frame_equal(in_parts(path, None, 150), at_once(path, None), check_exact=True)


def test_evaluate_judges_in_parts_what_does_not_fit_and_says_so(
    files: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    new, old = files
    printed = {}
    for rows_in_memory in (10_000, 300):
        console = Console(file=io.StringIO(), width=200)
        table = run(
            new, old, console=console, explain=True, report=new.with_suffix(".html"), json=new.with_suffix(".json"),
            segments=["country"], rows_in_memory=rows_in_memory, num_draws=60, seed=3, min_users=5, min_positives=5,
        )  # fmt: skip
        printed[rows_in_memory] = table, console.file.getvalue()  # type: ignore[attr-defined]
    assert_frame_equal(printed[300][0], printed[10_000][0], check_exact=True)
    assert "other definitions" in printed[10_000][1]
    assert "other definitions" not in printed[300][1]
    assert "450 impressions are more than fit into memory" in caplog.text
    assert "What other definitions of AUC give is left out" in caplog.text
    assert "more than fit into memory" in new.with_suffix(".html").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"p_ctr": pl.when(pl.col("impression_id") != "i7").then("p_ctr").otherwise(float("nan"))},
            "is NaN or infinite",
        ),
        ({"p_ctr": pl.when(pl.col("impression_id") != "i7").then("p_ctr")}, "`p_ctr` is null, in rows [0-9_]+ to"),
        ({"clicked": pl.when(pl.col("impression_id") != "i7").then("clicked")}, "`clicked` is null, in rows"),
        ({"clicked": pl.lit(True)}, "`clicked` is true on all 450 rows: there are no negatives"),
        ({"user_id": pl.when(pl.col("impression_id") != "i7").then("user_id").otherwise(pl.lit(""))}, "is empty"),
        ({"country": pl.lit(None, pl.String)}, "`country` has no value in any row"),
        ({"country": pl.col("impression_id")}, "values; expected at most 200"),
        ({"event_timestamp": pl.lit(5)}, "no time between 1990 and 2100"),
        (
            {
                "event_timestamp": pl.when(pl.int_range(pl.len()) < 200)
                .then(pl.col("event_timestamp").dt.epoch("s"))
                .otherwise(pl.col("event_timestamp").dt.epoch("ms"))
            },
            "one unit",
        ),
    ],
)
def test_a_broken_row_in_any_part_is_refused(tmp_path: Path, change: dict[str, pl.Expr], message: str) -> None:
    path = tmp_path / "new.parquet"
    predictions(1).with_columns(**change).write_parquet(path)
    with pytest.raises(TableError, match=message):
        in_parts(path, None, 200)


def test_no_rows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "new.parquet"
    predictions(1).clear().write_parquet(path)
    with pytest.raises(TableError, match="has no rows"):
        in_parts(path, None, 200)


def test_an_impression_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "new.parquet"
    frame = predictions(1)
    pl.concat([frame, frame.head(1)]).write_parquet(path)
    with pytest.raises(ValueError, match=f"repeat an impression_id \\(such as {frame['impression_id'][0]}\\)"):
        in_parts(path, None, 100)


def test_two_files_must_be_of_the_same_impressions_with_the_same_labels(files: tuple[Path, Path]) -> None:
    new, old = files
    whole = pl.read_parquet(old)
    whole.filter(pl.col("impression_id") != "i7").write_parquet(old)
    with pytest.raises(ValueError, match="lacks 1 \\(such as i7\\) and has 0 others"):
        in_parts(new, old, 200)
    whole.with_columns(clicked=pl.col("clicked") ^ (pl.col("impression_id") == "i7")).write_parquet(old)
    with pytest.raises(ValueError, match="label `clicked` of `old`, seed 0 differs from that of `new` on 1 of"):
        in_parts(new, old, 200)


def test_a_null_score_of_a_judged_impression_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "new.parquet"
    frame = predictions(1)
    clicked = frame.filter(pl.col("clicked") & pl.col("converted").is_not_null())["impression_id"][0]
    frame.with_columns(p_cvr=pl.when(pl.col("impression_id") != clicked).then("p_cvr")).write_parquet(path)
    with pytest.raises(ValueError, match=f"ranker `new`: 1 null and 0 NaN scores in `p_cvr` .*{clicked}"):
        in_parts(path, None, 200)


def test_nothing_is_left_on_disk(files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    in_parts(*files, 200)
    assert not list(scratch.iterdir())
