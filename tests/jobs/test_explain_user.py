"""What a vector stands for: the right history, the nearest items by brute force, and nothing from later."""

import datetime as dt
import io

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from feature_repo.table_schemas import ItemLearnEmbeddings, Items, UserHistories, UserLearnInterests
from jobs import embed_items_learn, embed_users_learn, explain_user
from jobs.admission import TableError
from jobs.lake import Lake

START = dt.datetime(2025, 6, 1, tzinfo=dt.timezone.utc)
DAY = dt.timedelta(days=1)


@pytest.fixture
def embedded(learn_lake: Lake) -> Lake:
    items = pl.DataFrame({"item_id": [f"i{n:02}" for n in range(42)]}).with_columns(
        title=pl.concat_str(pl.lit("Title of "), "item_id"),
        event_timestamp=pl.lit(START),
        created_timestamp=pl.lit(START),
    )
    learn_lake.write(Items, pl.concat([Items.create_empty(), items], how="diagonal_relaxed"))
    embed_items_learn.run(learn_lake, embed_items_learn.Config())
    embed_users_learn.run(learn_lake, embed_users_learn.Config())
    return learn_lake


def explain(lake: Lake, user_id: str, as_of: dt.datetime | None = None, k: int = 5) -> explain_user.Explanation:
    return explain_user.run(lake, user_id, as_of=as_of, k=k, console=Console(file=io.StringIO()))


def newest(lake: Lake, as_of: dt.datetime) -> tuple[dict[str, np.ndarray], dict[str, tuple[dt.datetime, np.ndarray]]]:
    """Vectors of items and of users at a time, row by row."""
    items: dict[str, np.ndarray] = {}
    for row in lake.read(ItemLearnEmbeddings).sort("event_timestamp").iter_rows(named=True):
        if row["event_timestamp"] <= as_of:
            items[row["item_id"]] = np.array(row["item_learn_embedding"])
    users: dict[str, tuple[dt.datetime, np.ndarray]] = {}
    for row in lake.read(UserLearnInterests).sort("event_timestamp").iter_rows(named=True):
        if row["event_timestamp"] <= as_of:
            users[row["user_id"]] = (row["event_timestamp"], np.array(row["user_learn_interest"]))
    return items, users


@pytest.mark.parametrize("day", [19, 22, 60])
def test_the_nearest_items_and_the_history_are_those_of_the_time_asked_for(embedded: Lake, day: int) -> None:
    as_of = START + day * DAY
    items, users = newest(embedded, as_of)
    histories = embedded.read(UserHistories)
    assert len(users) > 3
    for user_id, (dated, vector) in list(users.items())[:5]:
        found = explain(embedded, user_id, as_of)
        assert found.dated == dated <= as_of
        cosines = {item: float(vector @ of_item) for item, of_item in items.items()}
        best = sorted(cosines.values(), reverse=True)[:5]
        assert found.nearest["cosine"].to_list() == pytest.approx(best, abs=1e-5)
        assert [cosines[item] for item in found.nearest["item_id"]] == pytest.approx(best, abs=1e-5)
        past = histories.filter((pl.col("user_id") == user_id) & (pl.col("event_timestamp") <= dated))
        wanted = past.sort("event_timestamp")["history_item_ids"][-1].to_list()[::-1]
        assert found.history["item_id"].to_list() == wanted
        assert found.nearest["in_history"].to_list() == [item in wanted for item in found.nearest["item_id"]]
        assert found.history["time"].max() < dated
        assert (found.index_kind, found.num_items, found.recall) == ("flat", len(items), 1.0)


def test_what_is_printed_has_history_neighbours_and_the_recall_of_the_index(embedded: Lake) -> None:
    user_id = embedded.read(UserLearnInterests)["user_id"][0]
    page = io.StringIO()
    explain_user.run(embedded, user_id, console=Console(file=page, width=100))
    for said in (
        f"user {user_id}",
        "clicked before",
        "nearest items",
        "Title of i",
        "recall against exact search 1.0000",
    ):
        assert said in page.getvalue()


def test_a_user_without_a_vector_is_told_why(embedded: Lake) -> None:
    first = embedded.read(UserLearnInterests).sort("event_timestamp").row(-1, named=True)
    with pytest.raises(TableError, match=r"there is no vector of user 'nobody'.*(\n.*)?such as "):
        explain(embedded, "nobody")
    with pytest.raises(TableError, match="has no vector at 2025-05-31"):
        explain(embedded, first["user_id"], START - DAY)
    with pytest.raises(ValueError, match="the methods are learn, content"):
        explain_user.run(embedded, "nobody", method="karma")


def test_vectors_of_two_models_are_not_compared(embedded: Lake) -> None:
    stale = embedded.manifest(ItemLearnEmbeddings).fingerprint | {"weights_sha256": "another"}
    embedded.write(ItemLearnEmbeddings, embedded.read(ItemLearnEmbeddings), fingerprint=stale)
    with pytest.raises(ValueError, match="item_learn_embeddings"):
        explain(embedded, embedded.read(UserLearnInterests)["user_id"][0])
