"""What is known of an item: its activity, its catalogue fields, what its text says, whom it appeals to.

Each function gives the view for an entity, ours (`feature_views.py`) or a team's own:

    from feature_repo.item_features import item_activity_view
    item_activity = item_activity_view(product, lake="/data/lake")      # product: their Entity, its own join key

Time to live. It bounds how far back a join looks and says when a silent pipeline stops being believed. Activity rows
are sparse: one is written when a count changes, the last one (all zeros) 180 days after the last event, so a row holds
for up to 180 days and the views live 181. The catalogue and the embeddings hold until they are replaced: no limit.
"""

from datetime import timedelta

from feast import Entity, FeatureView
from feast.types import Int64

from feature_repo.data_sources import lake_table
from feature_repo.feast_fields import MADE_BY, OWNER, activity, categorical, key, scalar
from feature_repo.vector_views import UNTIL_REPLACED, vector_views

ACTIVITY_TTL = timedelta(days=181)


def item_activity_view(item: Entity, *, lake: str | None = None) -> FeatureView:
    """Trailing-window counts and smoothed rates of an item, as of the midnight before."""
    return FeatureView(
        name="item_activity",
        entities=[item],
        ttl=ACTIVITY_TTL,
        schema=[key(item.join_key), *activity("item")],
        source=lake_table(
            "item_activity",
            "One row per (item, midnight) at which a trailing count changes.",
            lake=lake,
            renamed={"item_id": item.join_key},
        ),
        description="Impressions, clicks, conversions and rates of an item over 1, 7, 30 and 180 days.",
        owner=OWNER,
        tags={**MADE_BY, "lake_table": "item_activity"},
    )


def item_attributes_view(item: Entity, *, lake: str | None = None) -> FeatureView:
    """The catalogue's own fields: the ID features of an item."""
    return FeatureView(
        name="item_attributes",
        entities=[item],
        ttl=UNTIL_REPLACED,
        schema=[
            key(item.join_key),
            categorical("category", "category, as the catalogue has it"),
            categorical("brand", "brand, as the catalogue has it"),
            scalar("price_cents", "price in cents", Int64),
        ],
        source=lake_table("items", "One row per item.", lake=lake, renamed={"item_id": item.join_key}),
        description="Category, brand and price of an item.",
        owner=OWNER,
        tags={**MADE_BY, "lake_table": "items"},
    )


def item_content_views(item: Entity, *, lake: str | None = None) -> tuple[FeatureView, FeatureView]:
    """`item_content_version` (which vector, 8 bytes: what training joins) and `item_content` (the vector itself)."""
    return vector_views(
        item,
        name="item_content",
        table="item_content_embeddings",
        grain="One row per (item, time it was embedded).",
        table_key="item_id",
        id_feature="item_content_vector_id",
        vector_feature="item_content_embedding",
        description="What an item's text says, as a unit vector (LEARN, content extraction).",
        lake=lake,
    )


def item_learn_views(item: Entity, *, lake: str | None = None) -> tuple[FeatureView, FeatureView]:
    """`item_learn_version` and `item_learn`: known from the end of LEARN's training log on, null before."""
    return vector_views(
        item,
        name="item_learn",
        table="item_learn_embeddings",
        grain="One row per (item, time it was embedded).",
        table_key="item_id",
        id_feature="item_learn_vector_id",
        vector_feature="item_learn_embedding",
        description="Whom an item's text appeals to, as a unit vector near such users' (LEARN, item tower).",
        lake=lake,
    )


def item_karma_views(item: Entity, *, lake: str | None = None) -> tuple[FeatureView, FeatureView]:
    """`item_karma_version` and `item_karma`: known from the end of KARMA's training log on, null before."""
    return vector_views(
        item,
        name="item_karma",
        table="item_karma_embeddings",
        grain="One row per (item, time it was embedded).",
        table_key="item_id",
        id_feature="item_karma_vector_id",
        vector_feature="item_karma_embedding",
        description="Whom an item's text and picture appeal to, as a unit vector near such users' (KARMA, item side).",
        lake=lake,
    )
