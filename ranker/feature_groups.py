"""Groups of a ranker's features, as a team would decide on them: to have, or to have not.

A feature is of a feature view, and a view is what costs: something computes it, something keeps it online. So groups
follow the views, and a team's own view is a group of its own.

    ids               the user's and the candidate's own id, which come with the request
    <pair>            `content`, `learn`: the views of a user vector and an item vector of one embedding space, what
                      stands beside the vector's id in them, and what is computed from these views only (the cosine)
    <view>            any other view: `user_activity`, `item_activity`, `user_history`, `item_attributes`, your own;
                      also an on-demand view that is computed from the views of several groups
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ranker.feature_columns import FeatureColumns

IDS = "ids"


@dataclass(frozen=True)
class FeatureGroup:
    """Features that come and go together."""

    name: str
    features: tuple[str, ...]
    """Columns of the training set, in the order of the service."""
    views: tuple[str, ...]
    """Stored feature views that they are made of; none for ids."""
    tables: tuple[str, ...]
    """Lake tables of these views; a team's own views have none."""
    keys: tuple[str, ...]
    """Ids that the views are keyed by."""

    @property
    def is_of_the_user(self) -> bool:
        """Whether it says the same of every candidate that a user sees at one time."""
        return self.keys == ("user_id",)


def feature_groups(roles: Mapping[str, str], origins: Mapping[str, Mapping[str, Any]]) -> list[FeatureGroup]:
    """The groups of one feature service; each of its features is in one of them.

    Args:
        roles: feature -> role, of the service.
        origins: feature -> `view`, stored `views`, `tables` and `keys`; both as `build_training_set` leaves them in the
            metadata of the training set.

    Raises:
        ValueError: nothing says where a feature comes from.
    """
    if missing := [name for name in roles if name not in origins]:
        raise ValueError(
            f"feature groups: the training set does not say which feature view {missing[:3]} are of "
            f"({len(missing)} of {len(roles)} features). Another version built it: run build_training_set again."
        )
    group_of_view: dict[str, str] = {}
    for pair in FeatureColumns.from_roles(roles).vectors:
        views = [
            view for column in (pair.context, pair.item) for view in (origins[column]["view"], *_views(origins, column))
        ]
        # two embedding spaces in one view cannot be left out one by one
        name = next((group_of_view[view] for view in views if view in group_of_view), pair.name)
        group_of_view |= dict.fromkeys(views, name)
    taken = {IDS, *group_of_view.values()}

    def group_of(feature: str) -> str:
        views = {*_views(origins, feature)}
        groups = {group_of_view.get(view) for view in views}
        if len(groups) == 1 and (group := groups.pop()) is not None:
            return group
        name = str(views.pop() if len(views) == 1 else origins[feature]["view"])
        return f"{name}_view" if name in taken else name

    members: dict[str, list[str]] = {}
    for feature in roles:
        members.setdefault(group_of(feature), []).append(feature)
    ids = FeatureGroup(IDS, ("user_id", "item_id"), (), (), ("item_id", "user_id"))
    return [ids, *(_group(name, features, origins) for name, features in members.items())]


def choose_groups(groups: Sequence[FeatureGroup], names: Sequence[str] | None, ranker: str) -> list[FeatureGroup]:
    """The groups asked for, in their own order; all of them where none is named.

    Raises:
        ValueError: there is no such group.
    """
    if unknown := [name for name in names or () if name not in {group.name for group in groups}]:
        raise ValueError(
            f"there is no feature group {unknown[0]!r}; those of ranker {ranker} are "
            f"{', '.join(group.name for group in groups)}"
        )
    return [group for group in groups if not names or group.name in names]


def _views(origins: Mapping[str, Mapping[str, Any]], feature: str) -> Sequence[str]:
    views: Sequence[str] = origins[feature]["views"]
    return views


def _group(name: str, features: Sequence[str], origins: Mapping[str, Mapping[str, Any]]) -> FeatureGroup:
    def together(what: str) -> tuple[str, ...]:
        return tuple(sorted({one for feature in features for one in origins[feature][what]}))

    return FeatureGroup(name, tuple(features), together("views"), together("tables"), together("keys"))
