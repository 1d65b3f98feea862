"""The lake's tables that Feast serves, and the steps that write them.

`publish_features` puts them online and `build_training_set` joins them. Those of a method that a team does not run
may be missing: its views are then not online, and a service that needs them cannot be joined.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import dataframely as dy

from feature_repo.table_schemas import (
    ItemActivity,
    ItemContentEmbeddings,
    ItemKarmaEmbeddings,
    ItemLearnEmbeddings,
    ItemRelevanceEmbeddings,
    Items,
    QueryEmbeddings,
    QueryItemRelevance,
    UserActivity,
    UserContentInterests,
    UserHistories,
    UserKarmaInterests,
    UserLearnInterests,
)
from jobs.lake import table_name

if TYPE_CHECKING:
    from feast import FeatureView

STEPS_TO_WRITE: dict[type[dy.Schema], tuple[str, ...]] = {
    Items: ("ingest",),
    UserActivity: ("aggregate_activity",),
    ItemActivity: ("aggregate_activity",),
    UserHistories: ("collect_histories",),
    ItemContentEmbeddings: ("embed_items",),
    UserContentInterests: ("embed_users",),
    ItemLearnEmbeddings: ("fit_embedder", "embed_items_learn"),
    UserLearnInterests: ("fit_embedder", "embed_users_learn"),
    ItemKarmaEmbeddings: ("fit_embedder_karma", "embed_items_karma"),
    UserKarmaInterests: ("fit_embedder_karma", "embed_users_karma"),
    QueryEmbeddings: ("label_relevance", "distill_relevance"),
    ItemRelevanceEmbeddings: ("label_relevance", "distill_relevance"),
    QueryItemRelevance: ("label_relevance", "distill_relevance"),
}
"""Feature table -> the steps to run, in order, where it is missing."""

FEATURE_TABLES = tuple(STEPS_TO_WRITE)

OF_QUERIES = tuple(schema for schema, steps in STEPS_TO_WRITE.items() if "label_relevance" in steps)
"""Empty, and rightly so, where the log has no queries: a service may have their features, all of them null."""

BY_NAME = {table_name(schema): schema for schema in FEATURE_TABLES}
"""The tag `lake_table` of a feature view -> its table."""


def lake_keys(view: FeatureView) -> dict[str, str]:
    """{join key of a view over one of these tables: the table's own column}: a team's entities have names of their own,
    and the view's source says which column became which."""
    ours = {theirs: column for column, theirs in view.batch_source.field_mapping.items()}
    return {key: ours.get(key, key) for key in view.join_keys}
