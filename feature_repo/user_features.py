"""What is known of a user: activity, the items last clicked, what those were about, what is wanted next.

Each function gives the view for an entity, ours (`feature_views.py`) or a team's own, as in `item_features.py`, where
the times to live are explained. A history and an interest hold until the next click: no limit, the ranker sees
the dates.
"""

from feast import Entity, FeatureView
from feast.types import Int64

from feature_repo.data_sources import lake_table
from feature_repo.feast_fields import MADE_BY, OWNER, activity, history, key, scalar, timestamps
from feature_repo.item_features import ACTIVITY_TTL
from feature_repo.vector_views import UNTIL_REPLACED, vector_views


def user_activity_view(user: Entity, *, lake: str | None = None) -> FeatureView:
    """Trailing-window counts and smoothed rates of a user, as of the midnight before."""
    return FeatureView(
        name="user_activity",
        entities=[user],
        ttl=ACTIVITY_TTL,
        schema=[key(user.join_key), *activity("user")],
        source=lake_table(
            "user_activity",
            "One row per (user, midnight) at which a trailing count changes.",
            lake=lake,
            renamed={"user_id": user.join_key},
        ),
        description="Impressions, clicks, conversions and rates of a user over 1, 7, 30 and 180 days.",
        owner=OWNER,
        tags={**MADE_BY, "lake_table": "user_activity"},
    )


def user_history_view(user: Entity, *, lake: str | None = None) -> FeatureView:
    """The last items clicked before midnight, with their times."""
    return FeatureView(
        name="user_history",
        entities=[user],
        ttl=UNTIL_REPLACED,
        schema=[
            key(user.join_key),
            history("history_item_ids", "the last items clicked, newest last"),
            timestamps("history_timestamps", "when each of them was clicked"),
        ],
        source=lake_table(
            "user_histories",
            "One row per (user, midnight after a day with clicks).",
            lake=lake,
            renamed={"user_id": user.join_key},
        ),
        description="The last items a user clicked, dated.",
        owner=OWNER,
        tags={**MADE_BY, "lake_table": "user_histories"},
    )


def user_content_views(user: Entity, *, lake: str | None = None) -> tuple[FeatureView, FeatureView]:
    """`user_content_version` (which vector: what training joins) and `user_content` (the vector itself)."""
    return vector_views(
        user,
        name="user_content",
        table="user_content_interests",
        grain="One row per (user, midnight after a day with clicks).",
        table_key="user_id",
        id_feature="user_content_vector_id",
        vector_feature="user_content_interest",
        description="What a user's history is about, as a unit vector (LEARN's baseline without alignment).",
        beside_id=[scalar("user_content_num_items", "items of the history that had a vector", Int64)],
        lake=lake,
    )


def user_learn_views(user: Entity, *, lake: str | None = None) -> tuple[FeatureView, FeatureView]:
    """`user_interest_learn_version` and `user_interest_learn`: known from the end of LEARN's training log on."""
    return vector_views(
        user,
        name="user_interest_learn",
        table="user_learn_interests",
        grain="One row per (user, midnight after a day with clicks).",
        table_key="user_id",
        id_feature="user_learn_vector_id",
        vector_feature="user_learn_interest",
        description="What a user wants next, as a unit vector near such items' (LEARN, user tower).",
        beside_id=[scalar("user_learn_num_items", "items of the history that had a content vector", Int64)],
        lake=lake,
    )


def user_karma_views(user: Entity, *, lake: str | None = None) -> tuple[FeatureView, FeatureView]:
    """`user_interest_karma_version` and `user_interest_karma`: known from the end of KARMA's training log on."""
    return vector_views(
        user,
        name="user_interest_karma",
        table="user_karma_interests",
        grain="One row per (user, midnight after a day with clicks).",
        table_key="user_id",
        id_feature="user_karma_vector_id",
        vector_feature="user_karma_interest",
        description="What a user wants next, as a unit vector that a language model can put into words (KARMA).",
        beside_id=[scalar("user_karma_num_items", "items of the history that had a content vector", Int64)],
        lake=lake,
    )
