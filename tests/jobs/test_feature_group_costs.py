"""Seconds from the ledger, bytes from a real online store."""

import datetime as dt
import shutil
import sqlite3
from pathlib import Path

import pytest

from feature_repo.table_schemas import ItemContentEmbeddings
from jobs import publish_features
from jobs.feature_group_costs import bytes_online, seconds_to_make
from jobs.flow import LedgerEntry
from jobs.lake import Lake

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning", "ignore::FutureWarning")

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)


def note_run(lake: Lake, step: str, seconds: float, config: dict[str, object] | None = None) -> None:
    entry = LedgerEntry(config=config or {}, outside_inputs=None, reads={}, writes={}, finished=NOW, seconds=seconds)
    (lake.folder("ledger") / f"{step}.json").write_text(entry.model_dump_json())


def test_seconds_are_those_of_each_step_once(lake: Lake) -> None:
    for step, seconds in (("fit_embedder", 20.0), ("embed_items_learn", 3.0), ("embed_users_learn", 4.0)):
        note_run(lake, step, seconds)
    assert seconds_to_make(lake, ["item_learn_embeddings", "user_learn_interests"]) == 27.0
    assert seconds_to_make(lake, ["item_learn_embeddings"]) == 23.0


def test_what_is_given_or_never_ran_or_is_a_teams_own_has_no_seconds(lake: Lake) -> None:
    note_run(lake, "ingest", 9.0)
    note_run(lake, "embed_items", 30.0)
    assert seconds_to_make(lake, ["items"]) is None
    assert seconds_to_make(lake, []) is None
    assert seconds_to_make(lake, ["item_content_embeddings", "user_content_interests"]) is None


def test_relevance_costs_its_teacher_and_its_students(lake: Lake) -> None:
    note_run(lake, "label_relevance", 100.0)
    assert seconds_to_make(lake, ["query_item_relevance"]) is None
    note_run(lake, "distill_relevance", 11.0)
    assert seconds_to_make(lake, ["query_item_relevance"]) == 111.0
    assert seconds_to_make(lake, ["query_embeddings", "item_relevance_embeddings"]) == 111.0


def test_bytes_are_those_of_the_rows_in_the_online_store(feature_lake: Lake, tmp_path: Path) -> None:
    shutil.copytree(feature_lake.root, tmp_path / "lake", symlinks=True)
    lake = Lake(tmp_path / "lake", now=feature_lake.now)
    assert bytes_online(lake, ["item_content"]) == {}, "nothing says that it was published"
    publish_features.run(lake, publish_features.Config())
    note_run(lake, "publish_features", 1.0, {"feature_repo": None})
    found = bytes_online(lake, ["item_content", "user_activity", "our_margins"])
    assert set(found) == {"item_content", "user_activity"}
    by_hand = 0
    with sqlite3.connect(lake.root / "feast" / "online_store.db") as connection:
        connection.text_factory = bytes
        for row in connection.execute("SELECT * FROM tailrank_item_content"):
            by_hand += sum(len(value) if isinstance(value, bytes) else 8 for value in row if value is not None)
    assert found["item_content"] == by_hand
    num_items, width = lake.read(ItemContentEmbeddings)["item_id"].n_unique(), 4
    assert found["item_content"] > num_items * width * 4, "a float32 takes four bytes"
    assert bytes_online(lake, []) == {}
