"""The whole flow on a toy market: from nothing to a report, through Feast, and again with nothing to do."""

import datetime as dt
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

from feature_repo import table_schemas as tables
from jobs import flow
from jobs.lake import Lake
from jobs.settings import Settings, load_settings

if TYPE_CHECKING:
    from embedders.causal_lm import CausalLM

README_BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text(), re.DOTALL)

TOY = [
    "sources.simulate.size=toy",
    "fit_embedder.shape=tiny",
    "label_relevance.enabled=true",
    "distill_relevance.max_train_pairs=300",
    "train_ranker.rankers=['base', 'content', 'learn', 'karma', 'relevance', 'all', 'gbdt_content']",
    "evaluate_ranker.num_draws=200",
]


SETTINGS = """
[lake]
path = "lake"
[ingest]
source = "simulate"
[fit_embedder_karma]                # a language model of random weights, taught for a moment
enabled = true
language_model = "{language_model}"
max_users = 200
max_history = 10
output_dim = 16
epochs = 1
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, make_lm: "Callable[..., CausalLM]") -> Settings:
    folder = tmp_path_factory.mktemp("project")
    lm = make_lm()
    lm.model.save_pretrained(folder / "words")
    lm.tokenizer.save_pretrained(folder / "words")
    (folder / "tailrank.toml").write_text(SETTINGS.format(language_model=folder / "words"))
    return load_settings(folder / "tailrank.toml", flags=TOY)


@pytest.fixture(scope="module")
def lake(settings: Settings) -> Lake:
    lake = Lake(settings.lake_path)
    assert flow.run_steps(lake, settings.steps) == list(flow.STEPS)
    return lake


def test_every_table_is_written_and_a_second_run_has_nothing_to_do(lake: Lake, settings: Settings):
    for name in flow.STEPS:
        for schema in flow.step(name).writes:
            assert lake.exists(schema), f"{name} did not write {schema.__name__}"
    assert flow.run_steps(lake, settings.steps) == []


def test_the_command_says_so_and_where_the_report_is(lake: Lake):
    flags = [part for flag in TOY for part in ("--set", flag)]
    again = tailrank("run", "--config", str(lake.root.parent / "tailrank.toml"), *flags, cwd=lake.root)
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip() == f"nothing has changed; the report is still {lake.root / 'reports' / 'report.html'}"


def test_every_test_impression_is_scored_by_every_ranker(lake: Lake):
    examples = lake.scan(tables.TrainingExamples).filter(pl.col("split") == "test").collect()
    predictions = lake.read(tables.RankerPredictions)
    for ranker in ("base", "content", "learn", "karma", "relevance", "all", "gbdt_content"):
        scored = predictions.filter(pl.col("ranker") == ranker)
        assert set(scored.get_column("impression_id")) == set(examples.get_column("impression_id"))


def test_no_impression_is_lost_on_the_way_to_the_training_set(lake: Lake):
    windows = lake.read(tables.SplitWindows)
    within = lake.scan(tables.Impressions).filter(
        pl.col("event_timestamp").is_between(windows["start"].min(), windows["end"].max(), closed="left")
    )
    assert lake.manifest(tables.TrainingExamples).rows == within.select(pl.len()).collect().item()


def test_no_ranker_beats_the_ceiling_and_those_that_read_text_beat_the_one_that_counts(lake: Lake):
    metrics = lake.read(tables.SegmentMetrics).filter(
        (pl.col("label") == "clicked") & (pl.col("segment") == "all") & (pl.col("metric") == "auc")
    )
    value = dict(metrics.select("ranker", "value").rows())
    assert value["ceiling"] == max(value.values())
    assert min(value["content"], value["gbdt_content"]) > max(value["base"], 0.5)


def test_the_report_stands_alone_and_says_what_it_compared(lake: Lake):
    html = (lake.root / "reports" / "report.html").read_text()
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", html)
    assert len(html) < 3_000_000
    for words in ("UAUC", "WUAUC", "cold-start users", "long-tail items", "gbdt_content", "ceiling", "simulate"):
        assert words in html.replace("Cold", "cold").replace("Long", "long"), words


def test_the_notebook_of_the_readme_reads_the_features_through_feast(lake: Lake):
    examples = lake.read(tables.TrainingExamples).filter(pl.col("item_content_vector_id").is_not_null()).head(20)
    user_id, item_id = examples.select("user_id", "item_id").row(0)
    (notebook,) = [block for block in README_BLOCKS if "get_online_features" in block]
    for there, here in (
        ("feature_repo", str(lake.root / "feast")),
        ("user-0000001", user_id),
        ("item-000001", item_id),
    ):
        assert f'"{there}"' in notebook
        notebook = notebook.replace(f'"{there}"', f'"{here}"')
    seen = {"entity_df": examples.select("user_id", "item_id", "event_timestamp").to_pandas()}
    exec(notebook, seen)
    assert len(seen["training"]) == len(examples)
    stored = lake.read(tables.ItemContentEmbeddings).filter(pl.col("item_id") == item_id)["item_content_embedding"][-1]
    assert np.array_equal(np.float32(seen["now"]["item_content_embedding"][0]), stored.to_numpy())


def test_relevance_is_served_for_pairs_shown_and_for_pairs_never_seen(lake: Lake):
    """Online: the stored score of the newest row, and the same number computed on demand from both vectors."""
    from feast import FeatureStore

    store = FeatureStore(repo_path=str(lake.root / "feast"))
    stored = lake.read(tables.QueryItemRelevance).sort("event_timestamp")[-1].row(0, named=True)
    shown = lake.read(tables.Impressions).select("query_id", "item_id").unique()
    queries, items = (
        lake.read(schema)[key] for schema, key in ((tables.Queries, "query_id"), (tables.Items, "item_id"))
    )
    embedded = set(lake.read(tables.QueryEmbeddings)["query_id"])
    unseen = next(
        {"query_id": query, "item_id": item}
        for query in queries
        if query in embedded
        for item in items
        if (query, item) not in set(shown.rows())
    )
    asked = [{name: stored[name] for name in ("query_id", "item_id")}, unseen]
    names = ["query_item_relevance:query_item_relevance", "relevance_on_demand:relevance_on_demand"]
    found = store.get_online_features(features=names, entity_rows=asked).to_dict()
    assert found["query_item_relevance"] == [stored["query_item_relevance"], None]
    assert found["relevance_on_demand"][0] == pytest.approx(stored["query_item_relevance"], abs=1e-6)
    assert 0.0 < found["relevance_on_demand"][1] < 1.0


def test_relevance_is_known_from_its_labels_on_and_never_in_a_feed(lake: Lake):
    through = dt.datetime.fromisoformat(lake.manifest(tables.RelevanceAnswers).metadata["labels_through"])
    joined = lake.read(tables.TrainingExamples).join(
        lake.read(tables.Impressions).select("impression_id", "query_id"), on="impression_id"
    )
    known = joined.filter(pl.col("relevance_on_demand").is_not_null())
    assert known.height > 100
    assert known["event_timestamp"].min() >= through
    assert known["query_id"].null_count() == 0


def test_the_command_explains_a_pair(lake: Lake, tmp_path: Path):
    flags = [part for flag in TOY for part in ("--set", flag)]
    answer = lake.read(tables.RelevanceAnswers).row(0, named=True)
    query = dict(lake.read(tables.Queries).rows())[answer["query_id"]]
    at = ["--config", str(lake.root.parent / "tailrank.toml"), *flags]
    told = tailrank("explain", "--query", query, "--item", answer["item_id"], *at, cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    for words in (answer["label"], "category", "brand", "attributes", "representation"):
        assert words in told.stdout, words


def test_karma_is_served_as_its_tables_have_it_by_its_service_alone(lake: Lake):
    from feast import FeatureStore

    store = FeatureStore(repo_path=str(lake.root / "feast"))
    users, items = (
        lake.read(one).sort("event_timestamp") for one in (tables.UserKarmaInterests, tables.ItemKarmaEmbeddings)
    )
    user, item = users.row(-1, named=True), items.row(-1, named=True)
    keys = [{"user_id": user["user_id"], "item_id": item["item_id"]}, {"user_id": "nobody", "item_id": item["item_id"]}]
    online = store.get_online_features(store.get_feature_service("ranker_karma_v1"), keys).to_dict()
    assert online["user_karma_interest"] == [user["user_karma_interest"], None]
    assert online["item_karma_embedding"] == [item["item_karma_embedding"]] * 2
    cosine = np.dot(user["user_karma_interest"], item["item_karma_embedding"])
    assert online["user_item_karma_cosine"] == [pytest.approx(cosine, abs=1e-5), None]
    joined = lake.read(tables.TrainingExamples).drop_nulls("user_item_karma_cosine")
    through = dt.datetime.fromisoformat(lake.manifest(tables.KarmaCurves).fingerprint["trained_through"])
    assert joined.height > 100
    assert joined["event_timestamp"].min() >= through


def test_the_command_puts_a_users_vector_into_words(lake: Lake, tmp_path: Path):
    user = lake.read(tables.UserKarmaInterests).sort("event_timestamp")["user_id"][-1]
    told = tailrank("explain", "--user", user, "--method", "karma", "--lake", str(lake.root), cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    for words in (f"user {user}, karma vector", "reads as: ", "nearest items", "title words shared with the history"):
        assert words in told.stdout, words


def test_an_edited_title_embeds_one_item_and_leaves_the_old_vector_for_the_past(lake: Lake, settings: Settings):
    before = lake.manifest(tables.ItemContentEmbeddings).rows
    items = lake.read(tables.Items)
    edited = items.get_column("item_id")[0]
    title = pl.when(pl.col("item_id") == edited).then(pl.lit("Four-season mountain tent")).otherwise(pl.col("title"))
    lake.write(tables.Items, items.with_columns(title=title), metadata=lake.manifest(tables.Items).metadata)
    assert flow.run_steps(lake, settings.steps, ["embed_items"]) == ["embed_items"]
    rows = lake.read(tables.ItemContentEmbeddings).filter(pl.col("item_id") == edited).sort("event_timestamp")
    assert lake.manifest(tables.ItemContentEmbeddings).rows == before + 1
    assert rows.get_column("event_timestamp")[-1] > dt.datetime.now(dt.timezone.utc) - dt.timedelta(minutes=5)


def tailrank(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "jobs", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "COLUMNS": "120"},
    )


def test_the_plan_names_every_step_and_its_state(lake: Lake, tmp_path: Path):
    done = tailrank("plan", "--lake", str(lake.root), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in flow.STEPS:
        assert name in done.stdout
    assert "stale" in done.stdout
    assert "last:" in done.stdout


def test_exit_codes_tell_wrong_usage_from_bad_data(tmp_path: Path):
    assert tailrank("--version", cwd=tmp_path).stdout.startswith("tailrank 0.")
    assert tailrank("--help", cwd=tmp_path).returncode == 0
    unknown = tailrank("run", "embed_item", cwd=tmp_path)
    assert unknown.returncode == 2
    assert "there is no step 'embed_item'" in unknown.stderr
    (tmp_path / "tailrank.toml").write_text("[embed_items]\nbackbne = 'minilm'\n")
    misspelt = tailrank("plan", cwd=tmp_path)
    assert misspelt.returncode == 2
    assert "did you mean 'backbone'" in misspelt.stderr
    (tmp_path / "tailrank.toml").unlink()
    nothing = tailrank("run", "aggregate_activity", cwd=tmp_path)
    assert nothing.returncode == 1
    assert "impressions: there is no such table" in nothing.stderr
    assert "Traceback" not in nothing.stderr


def test_the_method_says_how_items_and_users_are_embedded(lake: Lake, tmp_path: Path):
    flags = [part for flag in TOY for part in ("--set", flag)]
    at = ["--config", str(lake.root.parent / "tailrank.toml"), *flags]
    # the title edited above is embedded by now; its vectors of LEARN and of KARMA are what is missing
    for one, schema in (("learn", tables.ItemLearnEmbeddings), ("karma", tables.ItemKarmaEmbeddings)):
        learnt = tailrank("run", "embed_users", "embed_items", "--method", one, *at, cwd=tmp_path)
        assert learnt.returncode == 0, learnt.stderr
        assert re.search(f"embed_items_{one}: 1 vectors embedded by {one}", learnt.stderr)
        assert re.search(f"embed_users_{one}: [0-9_]+ histories from .*: 0 embedded", learnt.stderr)
        assert lake.manifest(schema).rows == lake.read(tables.Items).height + 1
    for steps, method, message in (
        (["embed_items"], "lern", "there is no method 'lern'; the methods are content, learn, karma"),
        (["train_ranker"], "learn", "--method learn says what fit_embedder, embed_items, embed_users are about"),
        ([], "learn", "--method learn says what fit_embedder, embed_items, embed_users are about"),
    ):
        wrong = tailrank("run", *steps, "--method", method, *at, cwd=tmp_path)
        assert wrong.returncode == 2
        assert message in wrong.stderr


@pytest.mark.parametrize(
    ("curves", "items", "users"),
    [
        (tables.EmbedderCurves, tables.ItemLearnEmbeddings, tables.UserLearnInterests),
        (tables.KarmaCurves, tables.ItemKarmaEmbeddings, tables.UserKarmaInterests),
    ],
)
def test_no_vector_of_a_model_is_older_than_it(lake: Lake, curves: Any, items: Any, users: Any):
    through = dt.datetime.fromisoformat(lake.manifest(curves).fingerprint["trained_through"])
    first = lake.read(tables.Impressions).get_column("event_timestamp").min()
    assert through > first
    for schema, entities in ((items, tables.Items), (users, tables.UserHistories)):
        assert lake.read(schema).get_column("event_timestamp").min() == through
        key = "item_id" if entities is tables.Items else "user_id"
        assert set(lake.read(schema).get_column(key)) == set(lake.read(entities).get_column(key))


def test_a_lake_refuses_a_second_source(lake: Lake, tmp_path: Path):
    second = tailrank("ingest", "movielens", str(tmp_path), "--lake", str(lake.root), cwd=tmp_path)
    assert second.returncode == 2
    assert "one lake holds one log" in second.stderr


def test_anyones_predictions_are_judged(tmp_path: Path):
    rng = np.random.default_rng(0)
    count = 2000
    clicked = rng.random(count) < 0.3
    good = pl.DataFrame(
        {
            "impression_id": [f"i{n}" for n in range(count)],
            "user_id": [f"u{n % 100}" for n in range(count)],
            "item_id": [f"x{n % 37}" for n in range(count)],
            "event_timestamp": [dt.datetime(2025, 1, 1, tzinfo=dt.timezone.utc)] * count,
            "clicked": clicked,
            "p_ctr": np.clip(0.3 + 0.2 * clicked + rng.normal(0, 0.1, count), 0, 1),
        }
    )
    good.write_parquet(tmp_path / "new.parquet")
    good.with_columns(p_ctr=pl.lit(0.3)).write_parquet(tmp_path / "old.parquet")
    outputs = ["--report", "r.html", "--json", "r.json"]
    done = tailrank("evaluate", "new.parquet", "--baseline", "old.parquet", *outputs, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    import json

    numbers = json.loads((tmp_path / "r.json").read_text())
    for metric in ("auc", "uauc", "wuauc"):
        assert numbers[metric]["low"] < numbers[metric]["value"] < numbers[metric]["high"]
    assert list(numbers)[:3] == ["auc", "uauc", "wuauc"]
    assert (tmp_path / "r.html").exists()

    good.drop("p_ctr").write_parquet(tmp_path / "bad.parquet")
    bad = tailrank("evaluate", "bad.parquet", cwd=tmp_path)
    assert bad.returncode == 1
    assert "p_ctr" in bad.stderr
