"""From feature services to a join: which features, from which views, by which keys, and which vectors come later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import polars as pl

from jobs.feature_tables import BY_NAME, lake_keys

if TYPE_CHECKING:
    from feast import FeatureStore, FeatureView, Field
    from feast.on_demand_feature_view import OnDemandFeatureView


@dataclass(frozen=True)
class LateVector:
    """A vector that is not joined: its id is, and the vector is looked up by it.

    Attributes:
        matrix: name of the view, and of the lake's matrix, that holds the vectors.
        id_feature: feature with the vector's id.
        vector_feature: feature with the vector.
        table: lake table that holds both.
        fingerprint: tags of the vector's field: the model it was registered under.
    """

    matrix: str
    id_feature: str
    vector_feature: str
    table: str
    fingerprint: dict[str, str]


@dataclass
class ServicePlan:
    """What several services need, together.

    Attributes:
        services: service -> {feature: role}, as the training set's metadata has it.
        refs: "view:feature" of everything that Feast joins.
        views: the views joined, by name.
        join_keys: {column of the entity frame: column of the impressions}.
        vectors: what is looked up afterwards, by matrix.
        late_views: on-demand views that read vectors, computed after the look-up.
        sources: feature -> its view, then the stored views that it is made of.
    """

    services: dict[str, dict[str, str]] = field(default_factory=dict)
    refs: list[str] = field(default_factory=list)
    views: dict[str, FeatureView] = field(default_factory=dict)
    join_keys: dict[str, str] = field(default_factory=dict)
    vectors: dict[str, LateVector] = field(default_factory=dict)
    late_views: dict[str, OnDemandFeatureView] = field(default_factory=dict)
    sources: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def features(self) -> list[str]:
        """Columns of the training set that are features, each once, in the order of the services."""
        return list(dict.fromkeys(name for features in self.services.values() for name in features))

    @property
    def tables(self) -> set[str]:
        """Lake tables that the join and the look-up read; a team's own views have none."""
        joined = {str(view.tags["lake_table"]) for view in self.views.values() if "lake_table" in view.tags}
        return joined | {one.table for one in self.vectors.values()}

    @property
    def origins(self) -> dict[str, dict[str, Any]]:
        """Feature -> `view`, the stored `views` it is made of, their lake `tables`, and the ids (`keys`) it is by.

        Plain values: the metadata of the training set, which `ranker.feature_groups` reads.
        """
        tables = {name: view.tags.get("lake_table") for name, view in self.views.items()}
        tables |= {one.matrix: one.table for one in self.vectors.values()}
        keys = {
            name: {self.join_keys[key] for key in view.join_keys if key in self.join_keys}
            for name, view in self.views.items()
        }
        return {
            feature: {
                "view": self.sources[feature][0],
                "views": sorted({*self.sources[feature][1:]}),
                "tables": sorted({table for view in self.sources[feature] if (table := tables.get(view))}),
                "keys": sorted({key for view in self.sources[feature] for key in keys.get(view, ())}),
            }
            for feature in self.features
        }

    @property
    def joined_features(self) -> list[str]:
        """Columns that the point-in-time join gives."""
        return [ref.partition(":")[2] for ref in self.refs]


def plan_services(store: FeatureStore, names: Sequence[str], impression_columns: Sequence[str]) -> ServicePlan:
    """Resolve the services as they are registered.

    Args:
        store: Feast, opened.
        names: services.
        impression_columns: what a join key can be read from.

    Raises:
        ValueError: no such service, two views with one feature name, a field that nothing is known to do with, a
            join key that impressions do not have.
    """
    registered = {service.name: service for service in store.list_feature_services()}
    plain = {view.name: view for view in store.list_feature_views()}
    on_demand = {view.name: view for view in store.list_on_demand_feature_views()}
    plan = ServicePlan()
    origin: dict[str, str] = {}
    for name in names:
        if name not in registered:
            raise ValueError(
                f"build_training_set: no feature service {name!r} in Feast project {store.project!r} "
                f"(registered: {', '.join(sorted(registered)) or 'none'}).\n"
                "  what to do: name another, or run publish_features (with --force if it is called fresh)"
            )
        roles: dict[str, str] = {}
        for projection in registered[name].feature_view_projections:
            if projection.name_alias or projection.join_key_map:
                raise ValueError(
                    f"build_training_set: service {name} uses view {projection.name} under another name or other keys, "
                    "which a training set cannot say; register a view of that name instead"
                )
            wanted = [feature.name for feature in projection.features]
            if projection.name in on_demand:
                added = _add_on_demand(plan, on_demand[projection.name], wanted, plain)
            else:
                added = _add_view(plan, plain[projection.name], wanted, plain)
            for feature, (role, view) in added.items():
                if origin.setdefault(feature, view) != view:
                    raise ValueError(
                        f"build_training_set: feature {feature} is in views {origin[feature]} and {view}; rename one"
                    )
                roles[feature] = role
        plan.services[name] = roles
    _resolve_join_keys(plan, impression_columns)
    return plan


def _add_view(
    plan: ServicePlan, view: FeatureView, wanted: Sequence[str], views: dict[str, FeatureView]
) -> dict[str, tuple[str, str]]:
    """Plan the features of a view; returns {column of the training set: (role, view)}."""
    columns = {}
    for one in view.features:
        if one.name not in wanted:
            continue
        role = _role(one, view)
        source, column, stored = view, one.name, [view.name]
        if role in ("vector", "vector_id"):
            source, column, matrix = _add_vector(plan, one, view, views)
            role, stored = "vector_id", [source.name, matrix]
        _add_ref(plan, source, column)
        plan.sources[column] = (source.name, *stored)
        columns[column] = (role, source.name)
    return columns


def _add_on_demand(
    plan: ServicePlan, view: OnDemandFeatureView, wanted: Sequence[str], views: dict[str, FeatureView]
) -> dict[str, tuple[str, str]]:
    if view.source_request_sources:
        raise ValueError(f"build_training_set: {view.name} needs request data, which impressions do not have")
    inputs = [
        (views[projection.name], one)
        for projection in view.source_feature_view_projections.values()
        for one in views[projection.name].features
        if one.name in {feature.name for feature in projection.features}
    ]
    if any(one.tags.get("role") == "vector" for _, one in inputs):
        if str(getattr(view.mode, "value", view.mode)) != "python":
            raise ValueError(f"build_training_set: {view.name} reads vectors, so it must have mode='python'")
        plan.late_views[view.name] = view
        read = [column for source, one in inputs for column in _add_view(plan, source, [one.name], views)]
        stored = [name for column in read for name in plan.sources[column][1:]]
    else:
        plan.refs.extend(f"{view.name}:{name}" for name in wanted if f"{view.name}:{name}" not in plan.refs)
        for source, _ in inputs:
            plan.views[source.name] = source
        stored = [source.name for source, _ in inputs]
    plan.sources |= dict.fromkeys(wanted, (view.name, *stored))
    role = view.tags.get("role", "scalar")
    return dict.fromkeys(wanted, (role, view.name))


def _add_vector(
    plan: ServicePlan, one: Field, view: FeatureView, views: dict[str, FeatureView]
) -> tuple[FeatureView, str, str]:
    """Plan the look-up that the field (a vector, or the id of one) belongs to; returns view and name of the id, and
    the name of the view that holds the vector."""
    matrix = one.tags.get("matrix")
    id_view, id_field = _field_of(matrix, "vector_id", views, view, one)
    vector_view, vector_field = _field_of(matrix, "vector", views, view, one)
    plan.vectors[vector_view.name] = LateVector(
        matrix=vector_view.name,
        id_feature=id_field.name,
        vector_feature=vector_field.name,
        table=vector_view.tags["lake_table"],
        fingerprint={key: text for key, text in vector_field.tags.items() if key not in ("made_by", "role", "matrix")},
    )
    return id_view, id_field.name, vector_view.name


def _field_of(
    matrix: str | None, role: str, views: dict[str, FeatureView], view: FeatureView, one: Field
) -> tuple[FeatureView, Field]:
    for candidate in views.values():
        for other in candidate.features:
            if matrix and other.tags.get("matrix") == matrix and other.tags.get("role") == role:
                return candidate, other
    raise ValueError(
        f"build_training_set: {view.name}:{one.name} is a vector of matrix {matrix!r}, but no registered view has a "
        f"field with the tags role={role!r} and that matrix; vectors are joined by id (feature_repo/feast_fields.py)"
    )


def _add_ref(plan: ServicePlan, view: FeatureView, feature: str) -> None:
    ref = f"{view.name}:{feature}"
    if ref not in plan.refs:
        plan.refs.append(ref)
    plan.views[view.name] = view


def _role(one: Field, view: FeatureView) -> str:
    """The field's tag, or what its type suggests: a team's own views need no tags of ours."""
    from feast.types import Bool, Float32, Float64, Int32, Int64, String

    if "role" in one.tags:
        return str(one.tags["role"])
    if one.dtype in (Int32, Int64, Float32, Float64, Bool):
        return "scalar"
    if one.dtype == String:
        return "categorical"
    raise ValueError(
        f"build_training_set: nothing says what to do with {view.name}:{one.name} ({one.dtype}); "
        "give its Field the tag `role` (feature_repo/feast_fields.py lists the roles), or leave it out of the service"
    )


def _resolve_join_keys(plan: ServicePlan, impression_columns: Sequence[str]) -> None:
    """A view of ours says which ids it is keyed by; a team's own view is keyed like one of ours, or by our own name."""
    for view in plan.views.values():
        if view.tags.get("lake_table") in BY_NAME:
            plan.join_keys |= lake_keys(view)
    for view in plan.views.values():
        for key in view.join_keys:
            if key in plan.join_keys or key.startswith("__"):
                continue
            if key not in impression_columns:
                raise ValueError(
                    f"build_training_set: view {view.name} is keyed by {key}, which impressions do not have "
                    f"(they have {', '.join(impression_columns)}); leave it out of the service"
                )
            plan.join_keys[key] = key


def entity_frame(impressions: pl.DataFrame, plan: ServicePlan) -> pl.DataFrame:
    """Columns of the join: impression_id, event_timestamp and the join keys under Feast's names for them.

    A key may be null (the query, in a feed): such a row has no features by it, and stays.
    """
    return impressions.select(
        "impression_id", "event_timestamp", *(pl.col(ours).alias(theirs) for theirs, ours in plan.join_keys.items())
    )
