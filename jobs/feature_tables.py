"""The lake's tables that Feast serves, and the steps that write them.

`publish_features` puts them online and `build_training_set` joins them. Those of a method that a team does not run
may be missing: its views are then not online, and a service that needs them cannot be joined.
"""

import dataframely as dy

from feature_repo.table_schemas import (
    ItemActivity,
    ItemContentEmbeddings,
    ItemLearnEmbeddings,
    Items,
    UserActivity,
    UserContentInterests,
    UserHistories,
    UserLearnInterests,
)
from jobs.lake import table_name

STEPS_TO_WRITE: dict[type[dy.Schema], tuple[str, ...]] = {
    Items: ("ingest",),
    UserActivity: ("aggregate_activity",),
    ItemActivity: ("aggregate_activity",),
    UserHistories: ("collect_histories",),
    ItemContentEmbeddings: ("embed_items",),
    UserContentInterests: ("embed_users",),
    ItemLearnEmbeddings: ("fit_embedder", "embed_items_learn"),
    UserLearnInterests: ("fit_embedder", "embed_users_learn"),
}
"""Feature table -> the steps to run, in order, where it is missing."""

FEATURE_TABLES = tuple(STEPS_TO_WRITE)

BY_NAME = {table_name(schema): schema for schema in FEATURE_TABLES}
"""The tag `lake_table` of a feature view -> its table."""
