"""Anyone's predictions: harmless differences are put right and noted, anything else is refused with its reason."""

import datetime as dt
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console
from sklearn.metrics import roc_auc_score

from jobs.admission import TableError
from jobs.evaluate_predictions import run
from jobs.predictions_file import read_predictions

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
Write = Callable[..., Path]


def predictions(seed: int = 0, num_users: int = 80, per_user: int = 10) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    n = num_users * per_user
    logit = rng.normal(-0.8, 1.2, n)
    clicked = rng.random(n) < 1 / (1 + np.exp(-logit))
    user = np.repeat(np.arange(num_users), per_user)
    noise = np.random.default_rng(seed).normal(0, 1, n)
    return pl.DataFrame(
        {
            "impression_id": [f"i{i:04}" for i in range(n)],
            "user_id": [f"u{u}" for u in user],
            "item_id": [f"p{i % 37}" for i in range(n)],
            "event_timestamp": pl.Series([NOW - dt.timedelta(minutes=i) for i in range(n)]).cast(
                pl.Datetime("us", "UTC")
            ),
            "clicked": clicked,
            "converted": clicked & (rng.random(n) < 0.5),
            "p_ctr": 1 / (1 + np.exp(-(logit + noise))),
            "p_cvr": rng.random(n),
            "p_ctcvr": rng.random(n),
            "user_segment": np.where(user % 3 == 0, "cold_start", "others"),
        }
    )


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a frame as the kind of file that the name says."""

    def written(frame: pl.DataFrame, name: str = "mine.parquet") -> Path:
        path = tmp_path / name
        if path.suffix == ".parquet":
            frame.write_parquet(path)
        else:
            frame.write_csv(path, separator="\t" if path.suffix == ".tsv" else ",")
        return path

    return written


def judge(predictions: Path, baseline: Path | None = None, **arguments: Any) -> tuple[dict[str, Any], str]:
    """The JSON and what was printed."""
    out = predictions.with_suffix(".json")
    console = Console(file=io.StringIO(), width=80)
    run(predictions, baseline, json=out, console=console, num_draws=100, now=lambda: NOW, **arguments)
    return json.loads(out.read_text()), console.file.getvalue()  # type: ignore[attr-defined]


def test_json_and_terminal_agree_with_sklearn(write: Write) -> None:
    frame = predictions()
    numbers, printed = judge(write(frame))
    assert numbers["auc"]["value"] == pytest.approx(roc_auc_score(frame["clicked"], frame["p_ctr"]))
    by_user = [
        roc_auc_score(rows["clicked"], rows["p_ctr"])
        for _, rows in frame.group_by("user_id")
        if rows["clicked"].n_unique() == 2
    ]
    assert numbers["uauc"]["value"] == pytest.approx(np.mean(by_user))
    assert numbers["uauc"]["low"] < numbers["uauc"]["value"] < numbers["uauc"]["high"]
    assert numbers["labels"]["clicked"]["num_impressions"] == frame.height
    assert numbers["comparison"] is None
    assert f"{np.mean(by_user):.4f}" in printed
    assert max(len(line) for line in printed.splitlines() if not line.startswith(("numbers", "report"))) <= 80


def test_a_baseline_in_another_order_is_compared_impression_by_impression(write: Write) -> None:
    mine, other = predictions(1), predictions(2).reverse()
    numbers, printed = judge(write(mine), write(other, "other.parquet"))
    gain = next(
        row
        for row in numbers["comparison"]
        if (row["segment"], row["label"], row["metric"]) == ("all", "clicked", "auc")
    )
    expected = roc_auc_score(mine["clicked"], mine["p_ctr"]) - roc_auc_score(other["clicked"], other["p_ctr"])
    assert gain["gain"] == pytest.approx(expected)
    assert (gain["ranker"], gain["baseline"]) == ("mine", "other")
    assert "between mine and other" in printed or "than other" in printed


def test_the_numbers_name_the_data_they_are_of(write: Write, tmp_path: Path) -> None:
    ours, theirs = write(predictions()), write(predictions(1), name="old.parquet")
    run(ours, baseline=theirs, json=tmp_path / "r.json", console=Console(file=io.StringIO()), num_draws=100)
    data = json.loads((tmp_path / "r.json").read_text())["provenance"]["Data"]
    for path in (ours, theirs):
        assert f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()} of {path.name}" in data


def test_two_files_of_the_same_name_are_told_apart(write: Write, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    numbers, _ = judge(write(predictions(1)), write(predictions(2), "old/mine.parquet"))
    assert (numbers["ranker"], numbers["baseline"]) == ("predictions", "baseline")


def test_csv_and_tsv_give_the_numbers_of_parquet(write: Write) -> None:
    frame = predictions().with_columns(pl.col("clicked", "converted").cast(pl.Int8))
    truth, _ = judge(write(predictions()))
    for name in ("mine.csv", "mine.tsv"):
        numbers, _ = judge(write(frame, name))
        assert [row["value"] for row in numbers["segments"]] == pytest.approx([r["value"] for r in truth["segments"]])


def test_only_the_required_columns_are_needed(write: Write) -> None:
    bare = predictions().select("impression_id", "user_id", "item_id", "event_timestamp", "clicked", "p_ctr")
    numbers, _ = judge(write(bare))
    assert list(numbers["labels"]) == ["clicked"]
    assert {row["segment_kind"] for row in numbers["segments"]} == {"all"}


def test_the_report_is_written_whole_and_nothing_else_is_left(write: Write, tmp_path: Path) -> None:
    report = tmp_path / "out" / "r.html"
    judge(write(predictions()), report=report)
    assert report.read_text().rstrip().endswith("</html>")
    assert [path.name for path in report.parent.iterdir()] == ["r.html"]


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (pl.col("clicked").cast(pl.Int8), "`clicked` was Int8, read as true or false"),
        (pl.col("clicked").cast(pl.Float64), "`clicked` was Float64, read as true or false"),
        (pl.col("user_id").str.slice(1).cast(pl.Int64), "`user_id` was Int64, read as text"),
        (pl.col("user_id").str.slice(1).cast(pl.Float64), "`user_id` was Float64, read as text"),
        (pl.col("user_id").cast(pl.Categorical), "`user_id` was Categorical"),
        (pl.col("event_timestamp").dt.replace_time_zone(None), "names no time zone, read as UTC"),
        (pl.col("event_timestamp").dt.convert_time_zone("Asia/Tokyo"), ""),
        (pl.col("event_timestamp").dt.date(), "names no time zone, read as UTC"),
        (pl.col("event_timestamp").dt.epoch("s"), "read as seconds since 1970"),
        (pl.col("event_timestamp").dt.epoch("ms"), "read as milliseconds since 1970"),
        (pl.col("event_timestamp").dt.epoch("us"), "read as microseconds since 1970"),
        (pl.col("event_timestamp").dt.epoch("ns"), "read as nanoseconds since 1970"),
        (pl.col("event_timestamp").dt.strftime("%Y-%m-%d %H:%M:%S"), "was text, read as UTC where it names no zone"),
        (pl.col("event_timestamp").dt.strftime("%Y-%m-%dT%H:%M:%SZ"), "was text, read as UTC where it names no zone"),
        (pl.col("p_ctr").cast(pl.Float32), ""),
        (pl.col("p_ctr").cast(pl.Decimal(12, 9)), "`p_ctr` was Decimal"),
    ],
)
def test_harmless_differences_are_put_right_and_noted(write: Write, change: pl.Expr, note: str) -> None:
    read = read_predictions(write(predictions().with_columns(change)))
    assert note in " ".join(read.notes)
    assert bool(note) == bool(read.notes)
    assert read.frame["clicked"].to_list() == predictions()["clicked"].to_list()
    assert abs(read.end - NOW) <= dt.timedelta(days=1)
    assert read.start.tzinfo is not None


def test_a_score_that_is_no_probability_is_ranked_and_not_calibrated(write: Write) -> None:
    truth, _ = judge(write(predictions()))
    numbers, _ = judge(write(predictions().with_columns(pl.col("p_ctr") * 10 - 5)))
    assert numbers["uauc"] == pytest.approx(truth["uauc"])
    assert numbers["labels"]["clicked"]["calibration"] is None
    assert any("it is no probability" in note for note in numbers["notes"])


def test_text_ids_keep_their_leading_zeros(write: Write) -> None:
    frame = predictions().with_columns(user_id=pl.lit("00") + pl.col("user_id").str.slice(1))
    assert read_predictions(write(frame, "mine.csv")).frame["user_id"][0] == "000"


def test_further_columns_are_ignored_and_named(write: Write) -> None:
    read = read_predictions(write(predictions().with_columns(model=pl.lit("x"))))
    assert read.notes == ("mine.parquet: ignored columns model.",)


BAD = [
    ("missing column", lambda f: f.drop("clicked"), r"lacks column `clicked`; it has impression_id"),
    ("near name", lambda f: f.rename({"p_ctr": "pctr"}), r"lacks column `p_ctr` \(is it `pctr`\?\)"),
    ("no rows", lambda f: f.clear(), "has no rows"),
    ("NaN", lambda f: f.with_columns(p_ctr=pl.when(pl.int_range(pl.len()) == 4).then(float("nan")).otherwise("p_ctr")),
     r"`p_ctr` is NaN or infinite \(1 of 800 rows\)\n.*i0004"),
    ("null score", lambda f: f.with_columns(p_ctr=pl.when(pl.int_range(pl.len()) != 4).then("p_ctr")),
     "`p_ctr` is null"),
    ("score text", lambda f: f.with_columns(p_ctr=pl.lit("high")), r"`p_ctr` is not a number \(800 of 800 rows\)"),
    ("label 2", lambda f: f.with_columns(clicked=pl.lit(2)), "`clicked` is neither 0 nor 1"),
    ("label null", lambda f: f.with_columns(clicked=pl.lit(None, pl.Boolean)), "`clicked` is null"),
    ("no positives", lambda f: f.with_columns(clicked=pl.lit(False)), "false on all 800 rows: there are no positives"),
    ("no negatives", lambda f: f.with_columns(clicked=pl.lit(True)), "there are no negatives"),
    ("null id", lambda f: f.with_columns(user_id=pl.lit(None, pl.String)), "`user_id` is null"),
    ("fraction id", lambda f: f.with_columns(user_id=pl.lit(1.5)), "`user_id` is a fraction"),
    ("time text", lambda f: f.with_columns(event_timestamp=pl.lit("yesterday")), "`event_timestamp` is not a time"),
    ("time bool", lambda f: f.with_columns(event_timestamp=pl.lit(True)), "is Boolean, not a time"),
    ("epoch of no unit", lambda f: f.with_columns(event_timestamp=pl.lit(42)), "no time between 1990 and 2100"),
    ("year 1970", lambda f: f.with_columns(event_timestamp=pl.lit(dt.datetime(1970, 1, 2))), "before 1990"),
    ("two runs", lambda f: f.with_columns(seed=pl.int_range(pl.len()) % 2), "of 2 runs, told apart by seed"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input_is_refused_with_column_rule_count_and_remedy(
    write: Write, change: Callable[[pl.DataFrame], pl.DataFrame], words: str
) -> None:
    with pytest.raises(TableError, match=words) as error:
        read_predictions(write(change(predictions())))
    assert "what to do:" in str(error.value)
    assert "mine.parquet" in str(error.value)


def test_a_repeated_impression_is_refused(write: Write) -> None:
    frame = predictions()
    with pytest.raises(ValueError, match=r"2 of 802 rows repeat an impression_id \(such as i0000, i0001\)"):
        judge(write(pl.concat([frame, frame.head(2)])))


def test_files_of_different_impressions_are_refused(write: Write) -> None:
    with pytest.raises(ValueError, match="lacks 10 .* and has 0 others"):
        judge(write(predictions()), write(predictions().tail(790), "other.parquet"))


@pytest.mark.parametrize("name", ["mine.parquet", "mine.csv"])
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes("impression_id,user_id,item_id,event_timestamp,clicked,p_ctr\né,b,c,d,1,2\n".encode("latin-1"))
    with pytest.raises(TableError, match="cannot be read"):
        read_predictions(path)


def test_a_missing_file_and_an_unknown_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="there is no such file"):
        read_predictions(tmp_path / "nowhere.parquet")
    (tmp_path / "mine.xlsx").write_text("")
    with pytest.raises(TableError, match="unknown kind"):
        read_predictions(tmp_path / "mine.xlsx")
