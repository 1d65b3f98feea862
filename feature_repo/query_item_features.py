"""What a query asks for, and how well items answer it: distilled from a relevance teacher (ELLM-rele, MKD).

Each function gives the views for an entity, ours (`feature_views.py`) or a team's own, as in `item_features.py`, where
the times to live are explained. A score and a vector hold until the texts or the model change: no limit. An impression
without a query (in a feed) has none of this; online, a request without one sends an empty `query_id`.
"""

from feast import Entity, FeatureView

from feature_repo.data_sources import lake_table
from feature_repo.feast_fields import MADE_BY, OWNER, key, rate, scalar
from feature_repo.vector_views import UNTIL_REPLACED, vector_views


def query_relevance_views(query: Entity, *, lake: str | None = None) -> tuple[FeatureView, FeatureView]:
    """`query_relevance_version` (which vector: what training joins) and `query_relevance`: the vector, and the scale
    and the bias that make a probability of its cosine with an item's."""
    return vector_views(
        query,
        name="query_relevance",
        table="query_embeddings",
        grain="One row per (query, time it was embedded).",
        table_key="query_id",
        id_feature="query_relevance_vector_id",
        vector_feature="query_relevance_embedding",
        description="What a query asks for, as a unit vector near the items that answer it (MKD, representation).",
        beside_vector=[
            scalar("query_relevance_scale", "what the cosine with an item's vector is multiplied by"),
            scalar("query_relevance_bias", "what is added before the sigmoid"),
        ],
        lake=lake,
    )


def item_relevance_views(item: Entity, *, lake: str | None = None) -> tuple[FeatureView, FeatureView]:
    """`item_relevance_version` and `item_relevance`: an item's text by the model of `query_relevance`."""
    return vector_views(
        item,
        name="item_relevance",
        table="item_relevance_embeddings",
        grain="One row per (item, time it was embedded).",
        table_key="item_id",
        id_feature="item_relevance_vector_id",
        vector_feature="item_relevance_embedding",
        description="What an item answers, as a unit vector near the queries that ask for it (MKD, representation).",
        lake=lake,
    )


def query_item_relevance_view(query: Entity, item: Entity, *, lake: str | None = None) -> FeatureView:
    """The score of a pair that was shown or asked for; of any other pair, `relevance_on_demand` knows one."""
    return FeatureView(
        name="query_item_relevance",
        entities=[query, item],
        ttl=UNTIL_REPLACED,
        schema=[
            key(query.join_key),
            key(item.join_key),
            rate("query_item_relevance", "probability that the item is relevant to the query"),
        ],
        source=lake_table(
            "query_item_relevance",
            "One row per (query, item, time it was scored).",
            lake=lake,
            renamed={"query_id": query.join_key, "item_id": item.join_key},
        ),
        description="How relevant an item is to a query, as a student of the relevance teacher sees it (MKD).",
        owner=OWNER,
        tags={**MADE_BY, "lake_table": "query_item_relevance"},
    )
