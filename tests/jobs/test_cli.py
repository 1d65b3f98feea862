"""The command line: every command explains itself, and hands its options to the function behind it."""

import datetime as dt
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner, Result

from feature_repo import table_schemas as tables
from jobs import embed_items_learn, embed_users_learn, flow
from jobs.cli import app
from jobs.cli_options import console, errors
from jobs.lake import Lake

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
COMMANDS = ("plan", "ingest", "run", "evaluate", "gate", "recalibrate", "ablate", "explain")


def tailrank(*arguments: str, **environment: str) -> Result:
    # a console keeps the width of the moment it was made, and another test may have made it
    console._width = errors._width = int(environment["COLUMNS"]) if "COLUMNS" in environment else None
    return CliRunner().invoke(app, ["--quiet", *arguments], env=environment, catch_exceptions=False)


def write(path: Path, seed: int, num_users: int = 80, first: int = 0) -> Path:
    """Predictions with coarse scores, so that some tie. Impressions are numbered from `first` on, newest first."""
    world, ranker = np.random.default_rng(0), np.random.default_rng(seed)
    n = num_users * 12
    logit = world.normal(-0.6, 1.2, n)
    pl.DataFrame(
        {
            "impression_id": [f"i{first + i}" for i in range(n)],
            "user_id": [f"u{u}" for u in np.repeat(np.arange(num_users), 12)],
            "item_id": [f"p{i % 37}" for i in range(n)],
            "event_timestamp": pl.Series([NOW - dt.timedelta(minutes=first + i) for i in range(n)]),
            "clicked": world.random(n) < 1 / (1 + np.exp(-logit)),
            "p_ctr": np.round(1 / (1 + np.exp(-logit - ranker.normal(size=n))), 1),
            "country": np.where(np.arange(n) % 3 == 0, "nl", "be"),
        }
    ).write_parquet(path)
    return path


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_explains_itself_in_80_columns(command: str) -> None:
    result = tailrank(*filter(None, [command]), "--help", COLUMNS="80", TERMINAL_WIDTH="80")
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= 80
    for name in COMMANDS if not command else ():
        assert name in result.output


def test_evaluate_hands_its_options_on(tmp_path: Path) -> None:
    mine, other = write(tmp_path / "mine.parquet", 1), write(tmp_path / "other.parquet", 2)
    validation = write(tmp_path / "validation.parquet", 1, first=5000)
    result = tailrank(
        "evaluate", str(mine), "--baseline", str(other), "--segment", "country", "--explain",
        "--calibrate-on", str(validation), "--draws", "100", "--json", str(tmp_path / "numbers.json"),
        "--parquet", str(tmp_path / "tables"), "--report", str(tmp_path / "report.html"),
        COLUMNS="100",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    metrics = pl.read_parquet(tmp_path / "tables" / "segment_metrics.parquet")
    assert set(metrics["segment"]) == {"all", "nl", "be"}
    tables.SegmentMetrics.validate(metrics)
    calibration = tables.CalibrationMetrics.validate(
        pl.read_parquet(tmp_path / "tables" / "calibration_metrics.parquet")
    )
    methods = {name: set(calibration.filter(ranker=name)["method"]) for name in ("mine", "other")}
    assert methods == {"mine": {"as scored", "isotonic", "platt"}, "other": {"as scored"}}
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    ours = {one["name"]: one["value"] for one in numbers["other_definitions"]["clicked"]["mine"]["values"]}
    assert ours["UAUC"] == pytest.approx(numbers["uauc"]["value"])
    assert ours["WUAUC"] == pytest.approx(numbers["wuauc"]["value"])
    assert ours["AUC"] == pytest.approx(numbers["auc"]["value"])
    assert "what other definitions of AUC by user give" in result.output
    assert "are tied: a code that breaks ties by the order of the rows" in " ".join(result.output.split())
    paths = str(tmp_path)
    assert max(len(line) for line in result.output.splitlines() if paths not in line) <= 100
    assert (tmp_path / "report.html").exists()


def test_recalibrate_writes_the_file_again_as_evaluate_foretold(tmp_path: Path) -> None:
    mine, validation = write(tmp_path / "mine.parquet", 1), write(tmp_path / "validation.parquet", 1, first=5000)
    mended, tables_of = tmp_path / "mended.parquet", tmp_path / "tables"
    assert (
        tailrank("evaluate", str(mine), "--calibrate-on", str(validation), "--parquet", str(tables_of)).exit_code == 0
    )
    foretold = pl.read_parquet(tables_of / "calibration_metrics.parquet").filter(method="platt", segment="all")
    assert tailrank("recalibrate", str(mine), "--calibrate-on", str(validation), "--to", str(mended)).exit_code == 0
    assert tailrank("evaluate", str(mended), "--parquet", str(tables_of)).exit_code == 0
    came = pl.read_parquet(tables_of / "calibration_metrics.parquet").filter(method="as scored", segment="all")
    assert came["log_loss"].to_list() == pytest.approx(foretold["log_loss"].to_list())


def test_without_options_nothing_is_explained_or_mended(tmp_path: Path) -> None:
    result = tailrank("evaluate", str(write(tmp_path / "mine.parquet", 1)), "--json", str(tmp_path / "numbers.json"))
    assert result.exit_code == 0
    assert "other definitions" not in result.output
    assert "other_definitions" not in json.loads((tmp_path / "numbers.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ablate", "--method", "guessed"], "there is no method 'guessed'; the methods are permuted, retrained"),
        (["ablate", "--set", "train_ranker.sedes=[0]"], "seeds"),
        (["run", "nothing"], "there is no step 'nothing'"),
        (["run", "--method", "urm"], "there is no method 'urm'; the methods are content, learn, karma"),
        (["run", "--method", "karma"], "--method karma says what fit_embedder, embed_items, embed_users are about"),
        (["run", "embed_users", "--method", "karma"], "--method karma: this lake does without it. Set [fit_embedder_k"),
        (["ingest", "tape"], "there is no source 'tape'"),
        (["explain"], "say what to explain: --user USER, or --query TEXT with --item ITEM"),
        (["explain", "--query", "socks"], "beside --query, name the item: --item ITEM"),
        (["explain", "--item", "i1"], "beside --item, name the query: --query TEXT"),
        (["explain", "--user", "u1", "--query", "socks"], "explain one at a time"),
        (["explain", "--user", "u1", "--ask"], "no teacher knows of users"),
        (["explain", "--query", "socks", "--item", "i1", "--as-of", "2025-06-30"], "a pair is explained as it is now"),
        (["evaluate"], "FILE"),
        (["evaluate", "x.parquet", "--draws", "3"], "100"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what_is_right(arguments: list[str], words: str, tmp_path: Path) -> None:
    lake = ["--lake", str(tmp_path / "lake")] if arguments[0] != "evaluate" else []
    result = tailrank(*arguments, *lake, COLUMNS="200")
    assert result.exit_code == 2
    assert words in result.output


def test_bad_data_exits_with_1_and_one_message(tmp_path: Path) -> None:
    command = [Path(sys.executable).with_name("tailrank"), "-q", "evaluate", "nowhere.parquet"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: nowhere.parquet: there is no such file")
    assert "Traceback" not in done.stderr


def test_judged_pairs_are_taken_in_by_flags_and_the_lake_then_knows_what_it_cannot_do(tmp_path: Path) -> None:
    pl.DataFrame({"term": ["oak door"], "sku": ["d1"], "title": ["Door, oak"], "stars": [4]}).write_csv(
        tmp_path / "judged.csv"
    )
    lake = ["--lake", str(tmp_path / "lake")]
    given = {"query": "term", "grade": "stars", "grade_worst": "1", "grade_best": "5"}
    flags = [word for key, value in given.items() for word in ("--set", f"sources.judged_pairs.{key}={value}")]
    result = tailrank("ingest", "judged_pairs", str(tmp_path / "judged.csv"), *flags, *lake)
    assert result.exit_code == 0, result.output
    assert Lake(tmp_path / "lake").read(tables.RelevanceGrades)["grade"].to_list() == [2.25]
    with pytest.raises(ValueError, match="made of judged pairs alone") as error:
        tailrank("run", *lake)
    assert "aggregate_activity" in str(error.value)
    assert "tailrank run embed_items" in str(error.value)
    drawn = tailrank("plan", *lake, COLUMNS="160")
    assert drawn.exit_code == 0
    assert drawn.output.count("not for this lake: it has no impressions") == len(flow.NEED_IMPRESSIONS)


@pytest.mark.realdata
def test_home_depot_is_taken_in_with_a_few_flags(real_data: Path, tmp_path: Path) -> None:
    file = real_data / "homedepot_relevance" / "train.parquet"
    given = {"query": "search_term", "item_id": "product_uid", "title": "product_title", "grade": "relevance"}
    given |= {"grade_worst": "1", "grade_best": "3"}
    flags = [word for key, value in given.items() for word in ("--set", f"sources.judged_pairs.{key}={value}")]
    result = tailrank("ingest", "judged_pairs", str(file), "--lake", str(tmp_path / "lake"), *flags)
    assert result.exit_code == 0, result.output
    lake = Lake(tmp_path / "lake")
    written = (tables.Queries, tables.Items, tables.RelevanceGrades, tables.Impressions)
    assert [lake.manifest(schema).rows for schema in written] == [9_420, 45_703, 59_048, 0]
    assert not (lake.root / "quarantine").exists()


def test_explain_prints_what_a_vector_of_the_time_stands_for(learn_lake: Lake) -> None:
    embed_items_learn.run(learn_lake, embed_items_learn.Config())
    embed_users_learn.run(learn_lake, embed_users_learn.Config())
    learn_lake.write(tables.Items, tables.Items.create_empty())
    result = tailrank("explain", "--user", "u04", "--lake", str(learn_lake.root), "--as-of", "2025-06-20", "-k", "3")
    assert result.exit_code == 0
    assert "user u04, learn vector of 2025-06-20 00:00 UTC" in result.output
    assert len([line for line in result.output.split("nearest items")[1].splitlines() if "(no title)" in line]) == 3


def test_explain_reads_a_vector_of_karma_back_as_words(karma_lake: Lake) -> None:
    few = karma_lake.read(tables.UserHistories).filter(pl.col("user_id").is_in(["u03", "u04"]))
    karma_lake.write(tables.UserHistories, few)
    at = ["--lake", str(karma_lake.root), "--set", "fit_embedder_karma.enabled=true"]
    made = tailrank("run", "embed_users", "embed_items", "--method", "karma", *at)
    assert made.exit_code == 0, made.output
    told = tailrank("explain", "--user", "u04", "--method", "karma", *at[:2], "--as-of", "2025-06-20", "-k", "3")
    assert told.exit_code == 0, told.output
    assert "user u04, karma vector of 2025-06-20 00:00 UTC" in told.output
    assert "reads as: " in told.output
    assert "title words shared with the history: 0." in told.output
