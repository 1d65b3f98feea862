"""Which features belong together: by the views they are of."""

from typing import Any

import pytest

from ranker.feature_groups import IDS, choose_groups, feature_groups


def origin(view: str, *views: str, tables: list[str] | None = None, keys: list[str] | None = None) -> dict[str, Any]:
    return {"view": view, "views": list(views or [view]), "tables": tables or [], "keys": keys or ["item_id"]}


USER = ["user_id"]
ROLES = {
    "user_num_clicks_7d": "count",
    "user_ctr_7d": "rate",
    "history_item_ids": "history",
    "history_timestamps": "timestamps",
    "category": "categorical",
    "price_cents": "scalar",
    "user_content_vector_id": "vector_id",
    "user_content_num_items": "scalar",
    "item_content_vector_id": "vector_id",
    "user_item_content_cosine": "scalar",
    "margin": "scalar",
    "clicks_per_cent": "scalar",
}
ORIGINS = {
    "user_num_clicks_7d": origin("user_activity", tables=["user_activity"], keys=USER),
    "user_ctr_7d": origin("user_activity", tables=["user_activity"], keys=USER),
    "history_item_ids": origin("user_history", tables=["user_histories"], keys=USER),
    "history_timestamps": origin("user_history", tables=["user_histories"], keys=USER),
    "category": origin("item_attributes", tables=["items"]),
    "price_cents": origin("item_attributes", tables=["items"]),
    "user_content_vector_id": origin("user_content_version", "user_content", "user_content_version", keys=USER),
    "user_content_num_items": origin("user_content_version", keys=USER),
    "item_content_vector_id": origin("item_content_version", "item_content", "item_content_version"),
    "user_item_content_cosine": origin(
        "user_item_content_cosine", "item_content", "user_content", keys=["item_id", "user_id"]
    ),
    "margin": origin("our_margins"),
    "clicks_per_cent": origin("our_ratio", "item_attributes", "user_activity"),
}


def test_every_feature_is_in_one_group_and_a_teams_own_view_is_a_group() -> None:
    groups = {group.name: group for group in feature_groups(ROLES, ORIGINS)}
    assert {name: group.features for name, group in groups.items()} == {
        IDS: ("user_id", "item_id"),
        "user_activity": ("user_num_clicks_7d", "user_ctr_7d"),
        "user_history": ("history_item_ids", "history_timestamps"),
        "item_attributes": ("category", "price_cents"),
        "content": (
            "user_content_vector_id",
            "user_content_num_items",
            "item_content_vector_id",
            "user_item_content_cosine",
        ),
        "our_margins": ("margin",),
        "our_ratio": ("clicks_per_cent",),
    }
    assert groups["content"].views == ("item_content", "item_content_version", "user_content", "user_content_version")
    assert groups["user_activity"].tables == ("user_activity",)
    assert groups["our_margins"].tables == ()
    assert {name for name, group in groups.items() if group.is_of_the_user} == {"user_activity", "user_history"}


def test_an_on_demand_feature_of_one_view_goes_with_it() -> None:
    origins = {**ORIGINS, "clicks_per_cent": origin("our_ratio", "item_attributes")}
    groups = {group.name: group.features for group in feature_groups(ROLES, origins)}
    assert groups["item_attributes"] == ("category", "price_cents", "clicks_per_cent")


def test_a_view_called_like_a_pair_stays_a_group_of_its_own() -> None:
    groups = feature_groups(ROLES, {**ORIGINS, "margin": origin("content")})
    assert [group.features for group in groups if group.name == "content_view"] == [("margin",)]


def test_two_embedding_spaces_in_one_view_are_one_group() -> None:
    roles = {f"{side}_{space}_vector_id": "vector_id" for space in ("content", "learn") for side in ("user", "item")}
    origins = {name: origin("user_vectors" if name.startswith("user") else "item_vectors") for name in roles}
    assert [group.name for group in feature_groups(roles, origins)] == [IDS, "content"]


def test_a_training_set_that_does_not_say_where_features_come_from_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\['margin'\].*\(1 of 12 features\).*run build_training_set again"):
        feature_groups(ROLES, {name: one for name, one in ORIGINS.items() if name != "margin"})


def test_groups_are_chosen_by_name() -> None:
    groups = feature_groups(ROLES, ORIGINS)
    assert [group.name for group in choose_groups(groups, ["content", IDS], "learn")] == [IDS, "content"]
    assert choose_groups(groups, None, "learn") == groups
    with pytest.raises(ValueError, match=r"no feature group 'contents'; those of ranker learn are ids, user_activity"):
        choose_groups(groups, ["contents"], "learn")
