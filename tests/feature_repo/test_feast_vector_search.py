"""Feast's document search gives rows glued to the wrong ids: why vector search goes through an index of our own.

Each test asserts the fault. One that fails after an upgrade is good news: its message says what to look at again.
The store never gets it wrong, `FeatureStore` does: it takes the order of the sorted ids for the order of the rows that
the store found. So any store shows it; here two: Feast's own sqlite store with its text search, which needs nothing
installed, and the same store with an exact vector search in place of sqlite-vec, which Feast loads on Python 3.10 only.
"""

import datetime as dt
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from jobs.feast_store import quiet_feast

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning", "ignore::FutureWarning")

MENDED = (
    "Feast's document search gives each id its own row now. See whether the decision to keep vector search in "
    "embedders.vector_index still has a reason (DECISIONS.md), and pin the new behaviour instead of this."
)
START = dt.datetime(2025, 1, 1, tzinfo=dt.timezone.utc)
ANGLES = {"i1": 0.5, "i2": 1.0, "i3": 0.1, "i4": 0.8, "i5": 0.3}
"""Radians between the vector of each item and the query."""
NEAREST_FIRST = ["i3", "i5", "i1", "i4", "i2"]
ITEMS = ["i4", "i1", "i5", "i2", "i3"]
"""In the order they are written, which text search keeps: all titles match a word equally well."""
QUERY = [1.0, 0.0]

EXACT_SEARCH_STORE = '''
"""Feast's sqlite online store, searched exactly: every vector of the view is read and compared."""

from typing import Literal

import numpy as np
from feast.infra.key_encoding_utils import deserialize_entity_key
from feast.infra.online_stores.sqlite import SqliteOnlineStore, SqliteOnlineStoreConfig, _table_id
from feast.protos.feast.types.Value_pb2 import Value


class ExactSqliteOnlineStoreConfig(SqliteOnlineStoreConfig):
    type: Literal["exact_search_store.ExactSqliteOnlineStore"] = "exact_search_store.ExactSqliteOnlineStore"


class ExactSqliteOnlineStore(SqliteOnlineStore):
    def retrieve_online_documents_v2(self, config, table, requested_features, embedding, top_k, *args, **kwargs):
        rows = self._get_conn(config).execute(f"select distinct entity_key from {_table_id(config.project, table)}")
        keys = [deserialize_entity_key(key, config.entity_key_serialization_version) for key, in rows]
        found = []
        for key, (time, features) in zip(keys, self.online_read(config, table, keys), strict=True):
            distance = 1 - float(np.dot(features["vector"].float_list_val.val, embedding))
            found.append((distance, (time, key, features | {"distance": Value(float_val=distance)})))
        return [row for _, row in sorted(found, key=lambda pair: pair[0])][:top_k]
'''


def open_catalogue(folder: Path, items: list[str] = ITEMS, **online_store: Any) -> Any:
    """A feature store that holds five items, each with a title that names it and a vector at its angle."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Array, Float32, String

    item = Entity(name="item", join_keys=["item_id"], value_type=ValueType.STRING)
    rows = pd.DataFrame(
        {
            "item_id": items,
            "title": [f"lamp {item_id}" for item_id in items],
            "vector": [[float(np.cos(ANGLES[one])), float(np.sin(ANGLES[one]))] for one in items],
            "event_timestamp": pd.to_datetime([START] * len(items), utc=True),
        }
    )
    pl.from_pandas(rows).write_parquet(folder / "catalogue.parquet")
    catalogue = FeatureView(
        name="catalogue",
        entities=[item],
        ttl=dt.timedelta(days=10),
        schema=[
            Field(name="item_id", dtype=String),
            Field(name="title", dtype=String),
            Field(
                name="vector", dtype=Array(Float32), vector_index=True, vector_length=2, vector_search_metric="COSINE"
            ),
        ],
        source=FileSource(name="catalogue", path=str(folder / "catalogue.parquet"), timestamp_field="event_timestamp"),
    )
    config = RepoConfig(
        project="shop",
        provider="local",
        registry={"registry_type": "sql", "path": f"sqlite:///{folder}/registry.db"},
        online_store={"path": str(folder / "online.db"), **online_store},
        offline_store={"type": "duckdb"},
        entity_key_serialization_version=3,
    )
    store = FeatureStore(repo_path=str(folder), config=config)
    with quiet_feast(hide_its_bars=True):
        store.apply([item, catalogue])
        store.write_to_online_store("catalogue", rows)
    return store


def stored(rows: list[tuple[Any, Any, Any]]) -> list[tuple[str, str]]:
    """(item_id, title) of rows as the online store itself gives them."""
    return [(key.entity_values[0].string_val, features["title"].string_val) for _, key, features in rows]


def glued(item_ids: list[str]) -> dict[str, str]:
    """By the fault: the id that comes k-th in order stands beside the row that was found k-th."""
    return dict(zip(sorted(item_ids), item_ids, strict=True))


def test_text_search_in_feasts_own_store_puts_the_titles_of_other_items_beside_the_ids(tmp_path: Path) -> None:
    store = open_catalogue(tmp_path, type="sqlite", text_search_enabled=True)
    with quiet_feast():
        answer = store.retrieve_online_documents_v2(["catalogue:title"], query_string="lamp", top_k=5).to_dict()
        view = store.get_feature_view("catalogue")
        rows = store._get_provider().retrieve_online_documents_v2(
            store.config, view, ["title"], None, 5, query_string="lamp"
        )
    assert stored(rows) == [(one, f"lamp {one}") for one in ITEMS], "the online store keeps rows and ids together"
    assert answer["item_id"] == ITEMS
    assert answer["title"] == [f"lamp {glued(ITEMS)[one]}" for one in ITEMS], MENDED


def test_vector_search_puts_the_distances_and_titles_of_other_items_beside_the_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "exact_search_store.py").write_text(EXACT_SEARCH_STORE)
    monkeypatch.syspath_prepend(str(tmp_path))
    store = open_catalogue(tmp_path, type="exact_search_store.ExactSqliteOnlineStore")
    with quiet_feast():
        answer = store.retrieve_online_documents_v2(["catalogue:title"], query=QUERY, top_k=5).to_dict()
        view = store.get_feature_view("catalogue")
        rows = store._get_provider().retrieve_online_documents_v2(store.config, view, ["title"], QUERY, 5)
    assert stored(rows) == [(one, f"lamp {one}") for one in NEAREST_FIRST], "the online store is right"
    assert answer["item_id"] == NEAREST_FIRST
    beside = glued(NEAREST_FIRST)
    assert answer["title"] == [f"lamp {beside[one]}" for one in NEAREST_FIRST], MENDED
    distances = [1 - np.cos(ANGLES[beside[one]]) for one in NEAREST_FIRST]
    np.testing.assert_allclose(answer["distance"], distances, atol=1e-6, err_msg=MENDED)


def test_the_answer_is_right_only_where_the_ids_happen_to_be_in_order(tmp_path: Path) -> None:
    """How the fault hides from a small trial: the same rows, written in the order of their ids."""
    store = open_catalogue(tmp_path, items=sorted(ITEMS), type="sqlite", text_search_enabled=True)
    with quiet_feast():
        answer = store.retrieve_online_documents_v2(["catalogue:title"], query_string="lamp", top_k=5).to_dict()
    assert answer["title"] == [f"lamp {one}" for one in answer["item_id"]]


def test_the_sqlite_store_has_no_vector_search_on_this_python(tmp_path: Path) -> None:
    """Why the exact search above stands in for it: sqlite-vec is loaded on Python 3.10 only."""
    store = open_catalogue(tmp_path, type="sqlite", vector_enabled=True)
    with quiet_feast(), pytest.raises(sqlite3.OperationalError, match="no such module: vec0"):
        store.retrieve_online_documents_v2(["catalogue:title"], query=QUERY, top_k=5)


def test_the_faiss_store_cannot_be_configured(tmp_path: Path) -> None:
    """Why Feast's own FAISS is no way round it: its configuration refuses the `type` that every store must name."""
    from feast.repo_config import FeastConfigError, load_repo_config

    faiss_store = "feast.infra.online_stores.faiss_online_store.FaissOnlineStore"
    settings = tmp_path / "feature_store.yaml"
    settings.write_text(
        f"project: shop\nprovider: local\nregistry: {tmp_path}/registry.db\nentity_key_serialization_version: 3\n"
        f"online_store: {{type: {faiss_store}, dimension: 2, index_path: {tmp_path}/index}}\n"
    )
    with pytest.raises(FeastConfigError, match="Extra inputs are not permitted"):
        _ = load_repo_config(tmp_path, settings).online_store
