"""Which columns of vector ids make a pair, and whether the vectors of a pair may be multiplied.

A pair is the item's vector with one of the context that it is shown in: the user's, or the query's. Only the names of
the columns say so: `user_<space>_vector_id` or `query_<space>_vector_id` goes with `item_<space>_vector_id`.
"""

import re
from collections.abc import Iterable, Mapping

from ranker.batches import VectorPair

VECTOR_ID = re.compile(r"(user|query|item)_(.+)_vector_id")

ANOTHER_ROAD = {"pooling"}
"""Parts of a fingerprint that may differ within one embedding space: the mean of a user's item vectors is in the items'
space (LEARN's baseline without alignment), and says so there."""


def pair_columns(columns: Iterable[str]) -> tuple[VectorPair, ...]:
    """Pair the columns by name, in order of appearance.

    Raises:
        ValueError: a column of another name, or one that is not of a pair.
    """
    spaces: dict[str, dict[str, str]] = {}
    for column in columns:
        found = VECTOR_ID.fullmatch(column)
        if found is None:
            raise ValueError(
                f"feature roles: vector column {column!r} must be named `user_<name>_vector_id`, "
                "`query_<name>_vector_id` or `item_<name>_vector_id`, with one name for both vectors of an embedding "
                "space."
            )
        side, space = found.groups()
        spaces.setdefault(space, {})[side] = column
    return tuple(_pair(space, sides) for space, sides in spaces.items())


def _pair(space: str, sides: Mapping[str, str]) -> VectorPair:
    contexts = [column for side, column in sides.items() if side != "item"]
    there = [*sides.values()]
    if "item" not in sides:
        raise ValueError(
            f"feature roles: a ranker reads vectors in pairs, got {there} without `item_{space}_vector_id`. "
            "Put both into the feature service, or neither."
        )
    if not contexts:
        raise ValueError(
            f"feature roles: a ranker reads vectors in pairs, got {there} without `user_{space}_vector_id` or "
            f"`query_{space}_vector_id`. Put both into the feature service, or neither."
        )
    if len(contexts) > 1:
        raise ValueError(
            f"feature roles: {there} are three vectors of one name, and a pair has two. Give one pair another name, or "
            "put the pairs into feature services of their own."
        )
    return VectorPair(space, contexts[0], sides["item"])


def check_one_space(pair: VectorPair, context: Mapping[str, str], item: Mapping[str, str]) -> None:
    """Refuse a pair whose vectors two models made: their product means nothing, whatever their width.

    Args:
        pair: the columns, for the message.
        context: fingerprint of the context's vectors.
        item: fingerprint of the item's vectors.

    Raises:
        ValueError: naming each differing entry of both sides.
    """
    if differing := sorted(key for key in {*context, *item} - ANOTHER_ROAD if context.get(key) != item.get(key)):
        sides = "; ".join(
            f"{key}: {pair.context} has {context.get(key)!r}, {pair.item} {item.get(key)!r}" for key in differing
        )
        raise ValueError(
            f"vectors {pair.name}: both sides must be of one model. {sides}. "
            "Run the steps that write their tables again, then publish_features and build_training_set."
        )
