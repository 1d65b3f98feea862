"""What a group of features costs: seconds of the steps that make it, and bytes in the online store."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from feature_repo.table_schemas import Items
from jobs import flow
from jobs.feast_store import open_store
from jobs.feature_tables import BY_NAME, STEPS_TO_WRITE
from jobs.lake import Lake, table_name

if TYPE_CHECKING:
    from feast import FeatureStore

GIVEN = {table_name(Items)}
"""Tables that a log comes with: nobody makes them for the ranker."""


def seconds_to_make(lake: Lake, tables: Iterable[str]) -> float | None:
    """Seconds that the steps which write the tables took when they last ran, each step once.

    A step that writes two tables (`aggregate_activity`) counts in full for either: it would still have to run for the
    other. A run that found little to do was short, too: an embedding job encodes changed texts only.

    Returns:
        None where the features are given with the log or are a team's own, or a step has not run in this lake.
    """
    made = [table for table in tables if table not in GIVEN]
    steps = dict.fromkeys(step for table in made for step in STEPS_TO_WRITE[BY_NAME[table]])
    runs = [flow.last_run(lake, step) for step in steps]
    seconds = [run.seconds for run in runs if run is not None]
    return sum(seconds) if seconds and len(seconds) == len(runs) else None


def bytes_online(lake: Lake, views: Sequence[str]) -> Mapping[str, int]:
    """Bytes that each view takes in the online store: keys, feature names, values and times of every entity.

    Pages, free space and indices are left out: this is what is stored, not the size of the file. Only a sqlite store
    is measured.

    Returns:
        view -> bytes, for the views that are there.
    """
    entry = flow.last_run(lake, "publish_features")
    if entry is None or not views:
        return {}
    store = open_store(lake, entry.config.get("feature_repo"))
    if store.config.online_config.get("type") != "sqlite":
        return {}
    path = Path(store.config.repo_path or ".") / store.config.online_config["path"]
    if not path.exists():
        return {}
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        found = {view: _table_of(store, view) for view in views if _table_of(store, view) in tables}
        return {view: _bytes_of(connection, table) for view, table in found.items()}


def _table_of(store: FeatureStore, view: str) -> str:
    """Where Feast's sqlite store keeps a view."""
    return f"{store.project}_{view}"


def _bytes_of(connection: sqlite3.Connection, table: str) -> int:
    columns = [name for _, name, *_ in connection.execute(f'PRAGMA table_info("{table}")')]
    sizes = " + ".join(
        f"CASE TYPEOF(\"{column}\") WHEN 'null' THEN 0 WHEN 'integer' THEN 8 WHEN 'real' THEN 8 "
        f'ELSE LENGTH(CAST("{column}" AS BLOB)) END'
        for column in columns
    )
    return int(connection.execute(f'SELECT COALESCE(SUM({sizes}), 0) FROM "{table}"').fetchone()[0])
