"""The promotion gate: what it decides on files and on a lake, what it says, and the exit code it leaves."""

import datetime as dt
import hashlib
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console
from typer.testing import CliRunner

from feature_repo import table_schemas as tables
from jobs.cli import app
from jobs.gate import protected_segment, run
from jobs.lake import Lake, TableError
from jobs.provenance import sha256
from ranker.promotion import Decision

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
Noise = dict[str, float]
Write = Callable[..., str]

OLD: Noise = {"cold_start": 2.0, "others": 1.0}
HELPS_COLD: Noise = {"cold_start": 0.2, "others": 0.5}
HURTS_HEAD: Noise = {"cold_start": 0.1, "others": 1.4}


def predictions(noise: Noise, seed: int, num_users: int = 300, per_user: int = 20) -> pl.DataFrame:
    """A ranker that knows the log-odds up to noise, of a size that depends on the item's segment."""
    world = np.random.default_rng(0)
    n = num_users * per_user
    logit = world.normal(-0.7, 1.0, n)
    item_segment = np.where(world.random(n) < 0.45, "cold_start", "others")
    spread = np.vectorize(noise.__getitem__)(item_segment)
    p = 1 / (1 + np.exp(-logit - spread * np.random.default_rng(seed).normal(size=n)))
    clicked = world.random(n) < 1 / (1 + np.exp(-logit))
    user = np.repeat(np.arange(num_users), per_user)
    return pl.DataFrame(
        {
            "impression_id": [f"i{i:05}" for i in range(n)],
            "user_id": [f"u{u:03}" for u in user],
            "item_id": [f"p{i % 37}" for i in range(n)],
            "event_timestamp": pl.Series([NOW - dt.timedelta(minutes=i) for i in range(n)]).cast(
                pl.Datetime("us", "UTC")
            ),
            "clicked": clicked,
            "converted": clicked & (world.random(n) < 0.5),
            "p_ctr": p,
            "p_cvr": p,
            "p_ctcvr": p * p,
            "user_segment": np.where(user < 8, "cold_start", "others"),
            "item_segment": item_segment,
            "country": np.where(user % 2 == 0, "nl", "be"),
        }
    )


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes predictions as a file of that name; gives its path."""

    def written(name: str, noise: Noise, seed: int, **changes: Any) -> str:
        path = tmp_path / f"{name}.parquet"
        predictions(noise, seed).with_columns(**changes).write_parquet(path)
        return str(path)

    return written


def decide(new: str, old: str, *protect: str, **arguments: Any) -> tuple[Decision, str]:
    """The decision and what was printed."""
    console = Console(file=io.StringIO(), width=80)
    segments = [protected_segment(text) for text in protect]
    decision = run(new, old, protect=segments, num_draws=200, console=console, now=lambda: NOW, **arguments)
    return decision, console.file.getvalue()  # type: ignore[attr-defined]


def test_a_ranker_that_helps_cold_items_and_hurts_the_head_is_refused(write: Write) -> None:
    new, old = write("new", HURTS_HEAD, 1), write("old", OLD, 2)
    decision, printed = decide(new, old, "item:others")
    assert not decision.promote
    assert [check.outcome for check in decision.checks] == ["better", "worse"]
    said = " ".join(printed.split())
    assert said.count("Do not promote new. Overall, it ranks better than old") == 1
    assert "Worse in a protected segment: other items −0.0" in said
    assert max(map(len, printed.splitlines())) <= 80


def test_a_ranker_that_helps_without_harm_is_promoted(write: Write) -> None:
    decision, printed = decide(write("new", HELPS_COLD, 1), write("old", OLD, 2), "item:cold_start", "item:others")
    assert decision.promote
    assert "Promote new." in printed


def test_the_same_predictions_under_two_names_are_refused(write: Write) -> None:
    decision, _ = decide(write("a", OLD, 1), write("b", OLD, 1), "item:cold_start")
    assert (decision.promote, decision.checks[0].outcome) == (False, "no better")


def test_a_protected_segment_too_small_to_tell_refuses_unless_allowed(write: Write) -> None:
    new, old = write("new", HELPS_COLD, 1), write("old", OLD, 2)
    decision, printed = decide(new, old, "user:cold_start")
    assert not decision.promote
    assert "Too few users or positives to tell anything: cold-start users" in " ".join(printed.split())
    assert decide(new, old, "user:cold_start", allow_unknown=True)[0].promote


def test_any_column_of_the_file_can_be_protected(write: Write) -> None:
    worse_in_belgium = pl.when(pl.col("country") == "be").then(1 - pl.col("p_ctr")).otherwise("p_ctr")
    new, old = write("new", HELPS_COLD, 1, p_ctr=worse_in_belgium), write("old", {"cold_start": 9.0, "others": 9.0}, 2)
    decision, _ = decide(new, old, "country:be", "country:nl")
    assert [check.outcome for check in decision.checks[1:]] == ["worse", "no loss"]


@pytest.mark.parametrize(("metric", "label"), [("wuauc", "clicked"), ("auc", "clicked_and_converted")])
def test_metric_and_outcome_can_be_chosen(write: Write, metric: str, label: str) -> None:
    decision, printed = decide(write("new", HELPS_COLD, 1), write("old", OLD, 2), metric=metric, label=label)
    assert (decision.metric, decision.label) == (metric, label)
    assert f"its {metric.upper()} (" in printed
    assert decision.promote


def test_the_json_has_decision_reason_checks_inputs_and_definitions(write: Write, tmp_path: Path) -> None:
    new, old = write("new", HURTS_HEAD, 1), write("old", OLD, 2)
    out = tmp_path / "out" / "decision.json"
    decision, _ = decide(new, old, "item:others", json=out)
    written = json.loads(out.read_text())
    assert (written["decision"], written["exit_code"], written["reason"]) == ("refuse", 1, decision.reason)
    assert [check["segment"] for check in written["checks"]] == ["all", "others"]
    assert written["checks"][1]["gain_high"] < 0
    assert written["inputs"]["new"]["sha256"] == hashlib.sha256(Path(new).read_bytes()).hexdigest()
    assert written["inputs"]["against"]["path"] == old
    assert set(written["definitions"]) >= {"UAUC", "WUAUC", "Gain"}
    assert written["created"] == NOW.isoformat()


def test_the_json_of_an_earlier_run_does_not_outlive_a_failed_one(write: Write, tmp_path: Path) -> None:
    out = tmp_path / "decision.json"
    new, old = write("new", HELPS_COLD, 1), write("old", OLD, 2)
    assert decide(new, old, json=out)[0].promote
    with pytest.raises(TableError, match="there is no such file"):
        decide(str(tmp_path / "gone.parquet"), old, json=out)
    assert not out.exists()


def test_what_cannot_be_judged_says_why(write: Write) -> None:
    new, old = write("new", HELPS_COLD, 1), write("old", OLD, 2)
    with pytest.raises(ValueError, match="there is no segment item_segment:frozen to protect; the data have .*others"):
        decide(new, old, "item:frozen")
    with pytest.raises(TableError, match="has no column `contry` to judge by .is it `country`"):
        decide(new, old, "contry:be")
    moved = write("moved", OLD, 2, item_segment=pl.col("item_segment").reverse())
    with pytest.raises(ValueError, match="`item_segment` of new differs from that of moved on"):
        decide(new, moved, "item:others")


@pytest.mark.parametrize("text", ["item", "item:", ":cold_start", ""])
def test_a_protection_without_kind_or_segment_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write item:cold_start"):
        protected_segment(text)


def test_protections_name_tiers_in_short_and_columns_in_full() -> None:
    assert protected_segment("item:cold_start") == ("item_segment", "cold_start")
    assert protected_segment("user:others") == ("user_segment", "others")
    assert protected_segment("user_item_segment:cold_start users x others items")[0] == "user_item_segment"
    assert protected_segment("category:Books: used") == ("category", "Books: used")


def test_a_folder_is_hashed_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("2.parquet", "1.parquet"):
        (tmp_path / "a" / name).write_text(name)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert sha256(tmp_path / "a") == sha256(tmp_path / "b")
    (tmp_path / "b" / "1.parquet").write_text("changed")
    assert sha256(tmp_path / "a") != sha256(tmp_path / "b")


# --- on a lake -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged_lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Predictions of base, learn (two seeds each) and harmful; segments by item and country."""
    lake = Lake(tmp_path_factory.mktemp("gate") / "lake", now=lambda: NOW)
    kinds = ["item_segment", "country"]
    frames = [
        predictions(noise, 10 * place + seed).with_columns(
            ranker=pl.lit(ranker), seed=pl.lit(seed, pl.Int64), user_segment=None, item_segment=None
        )
        for place, (ranker, noise) in enumerate((("base", OLD), ("learn", HELPS_COLD), ("harmful", HURTS_HEAD)))
        for seed in ((0,) if ranker == "harmful" else (0, 1))
    ]
    lake.write(tables.RankerPredictions, pl.concat(frames).drop("country"))
    segments = predictions(OLD, 0).select("impression_id", *kinds)
    lake.write(tables.ImpressionSegments, segments, metadata={"kinds": {kind: {"rule": kind} for kind in kinds}})
    return lake


def test_two_rankers_of_a_lake_are_judged_over_their_seeds(judged_lake: Lake, tmp_path: Path) -> None:
    out = tmp_path / "decision.json"
    decision, _ = decide("learn", "base", "item:cold_start", "country:nl", lake=judged_lake, json=out)
    assert decision.promote
    written = json.loads(out.read_text())
    assert (written["inputs"]["new"]["seeds"], written["inputs"]["new"]["ranker"]) == ([0, 1], "learn")
    assert written["inputs"]["new"]["num_impressions"] == 6000
    refused, _ = decide("harmful", "base", "item:others", lake=judged_lake)
    assert (refused.promote, refused.checks[1].outcome) == (False, "worse")


def test_what_a_lake_does_not_have_is_named_with_what_it_has(judged_lake: Lake) -> None:
    with pytest.raises(ValueError, match="no ranker `lern` in .*; it has predictions of base, learn, harmful"):
        decide("lern", "base", lake=judged_lake)
    with pytest.raises(TableError, match="no segments by `user_segment`; it has item_segment, country"):
        decide("learn", "base", "user:cold_start", lake=judged_lake)
    with pytest.raises(ValueError, match="against itself"):
        decide("base", "base", lake=judged_lake)


# --- the command ---------------------------------------------------------------------------------------------


def test_exit_codes_tell_promotion_refusal_wrong_usage_and_bad_data(write: Write, judged_lake: Lake) -> None:
    better, harmful, old = write("better", HELPS_COLD, 1), write("harmful", HURTS_HEAD, 1), write("old", OLD, 2)
    cases: list[tuple[list[str], int, str]] = [
        ([better, "--against", old, "--protect", "item:cold_start"], 0, "Promote better."),
        ([harmful, "--against", old, "--protect", "item:others"], 1, "Do not promote harmful."),
        ([harmful, "--against", old, "--protect", "item:others", "--epsilon", "0.5"], 0, "Promote harmful."),
        (["learn", "--against", "base", "--lake", str(judged_lake.root)], 0, "Promote learn."),
        ([better], 2, "--against"),
        ([better, "--against", old, "--protect", "items"], 2, "`items` names no segment"),
        ([better, "--against", old, "--metric", "ndcg"], 2, "ndcg"),
        ([better, "--against", old, "--epsilon", "-1"], 2, "epsilon"),
        ([better, "--against", old, "--json", "decision.parquet"], 2, "ends in .json"),
        ([better, "--against", "nowhere.parquet"], 3, "no decision was made: nowhere.parquet: there is no such file"),
        ([better, "--against", old, "--protect", "item:frozen"], 3, "no decision was made: there is no segment"),
    ]
    for arguments, code, words in cases:
        result = CliRunner().invoke(app, ["--quiet", "gate", *arguments], catch_exceptions=False)
        assert result.exit_code == code, (arguments, result.output)
        assert words in " ".join(result.output.split())


def test_the_installed_command_leaves_the_exit_code_to_the_shell(write: Write) -> None:
    tailrank = Path(sys.executable).with_name("tailrank")
    harmful, old = write("harmful", HURTS_HEAD, 1), write("old", OLD, 2)
    cases = ([harmful, "--against", old, "--protect", "item:others"], 1), ([harmful, "--against", "nowhere.parquet"], 3)
    for arguments, code in cases:
        done = subprocess.run([tailrank, "-q", "gate", *arguments], capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert ("no decision was made" in done.stderr) == (code == 3)


def test_a_gate_that_breaks_does_not_look_like_a_refusal(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("jobs.gate.compare", out_of_memory)
    new, old = write("new", HELPS_COLD, 1), write("old", OLD, 2)
    decision = tmp_path / "decision.json"
    result = CliRunner().invoke(app, ["-q", "gate", new, "--against", old, "--json", str(decision)])
    assert result.exit_code == 3
    assert "no decision was made: MemoryError()" in result.output
    assert not decision.exists()


@pytest.mark.realdata
def test_on_movielens_popularity_replaces_noise_and_noise_does_not_replace_popularity(
    real_data: Path, tmp_path: Path
) -> None:
    """Likes (4 stars and more) of the last fifth of the ratings, scored by the films' share of likes before it."""
    ratings = pl.read_parquet(real_data / "ml_latest_small" / "ratings.parquet").sort("timestamp")
    ratings = ratings.rename({"userId": "user_id", "movieId": "item_id"}).with_row_index("impression_id")
    ratings = ratings.with_columns(clicked=pl.col("rating") >= 4.0)
    cut = int(0.8 * ratings.height)
    before, test = ratings.head(cut), ratings.tail(ratings.height - cut)
    films = before.group_by("item_id").agg(likes=pl.col("clicked").sum(), seen=pl.len())
    test = test.join(films, on="item_id", how="left", maintain_order="left").with_columns(
        pl.col("likes", "seen").fill_null(0)
    )
    share = (pl.col("likes") + 5) / (pl.col("seen") + 10)
    noise = pl.Series(np.random.default_rng(0).normal(0, 0.3, test.height))
    item_segment = pl.when(pl.col("seen") == 0).then(pl.lit("cold_start")).otherwise(pl.lit("others"))
    columns_of_a_file = ["impression_id", "user_id", "item_id", "clicked", "item_segment", "p_ctr", "event_timestamp"]
    time = pl.from_epoch("timestamp").alias("event_timestamp")
    for name, score in (("popularity", share), ("noisy", (share + noise).clip(0, 1))):
        test.with_columns(time, item_segment=item_segment, p_ctr=score).select(columns_of_a_file).write_parquet(
            tmp_path / f"{name}.parquet"
        )
    popularity, noisy = str(tmp_path / "popularity.parquet"), str(tmp_path / "noisy.parquet")
    promoted, _ = decide(popularity, noisy, "item:others")
    assert promoted.promote
    assert promoted.checks[0].gain is not None
    assert promoted.checks[0].gain > 0.05
    refused, _ = decide(noisy, popularity, "item:others")
    assert [check.outcome for check in refused.checks] == ["worse", "worse"]
