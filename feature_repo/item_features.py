"""What is known of an item: its activity, its catalogue fields, what its text says.

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
from feature_repo.feast_fields import MADE_BY, OWNER, activity, categorical, key, scalar, vector, vector_id

ACTIVITY_TTL = timedelta(days=181)
UNTIL_REPLACED = timedelta(0)  # Feast's way of saying "no limit"


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
        tags={**MADE_BY, "lake_table": "item_activity", "lake_key": "item_id"},
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
        tags={**MADE_BY, "lake_table": "items", "lake_key": "item_id"},
    )


def item_content_views(item: Entity, *, lake: str | None = None) -> tuple[FeatureView, FeatureView]:
    """`item_content_version` (which vector, 8 bytes: what training joins) and `item_content` (the vector itself)."""
    table = "item_content_embeddings"
    source = lake_table(
        table, "One row per (item, time it was embedded).", lake=lake, renamed={"item_id": item.join_key}
    )
    tags = {**MADE_BY, "lake_table": table, "lake_key": "item_id"}
    version = FeatureView(
        name="item_content_version",
        entities=[item],
        ttl=UNTIL_REPLACED,
        schema=[
            key(item.join_key),
            vector_id("item_content_vector_id", "item_content", "which vector of item_content held at the time"),
        ],
        source=source,
        description="Id of an item's content vector.",
        owner=OWNER,
        tags=tags,
    )
    content = FeatureView(
        name="item_content",
        entities=[item],
        ttl=UNTIL_REPLACED,
        schema=[
            key(item.join_key),
            vector("item_content_embedding", "item_content", table, "text of the item through a frozen encoder", lake),
        ],
        source=source,
        description="What an item's text says, as a unit vector (LEARN, content extraction).",
        owner=OWNER,
        tags=tags,
    )
    return version, content
