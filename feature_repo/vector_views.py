"""A table of vectors in two views: `<name>_version`, the id of a vector, and `<name>`, the vector itself.

Training joins the id (8 bytes a row) and gathers the vector later from the matrix of the same name; serving reads the
vector. Functions only: this file can be imported as `feature_repo.vector_views` into any Feast repo.
"""

from collections.abc import Sequence
from datetime import timedelta

from feast import Entity, FeatureView, Field

from feature_repo.data_sources import lake_table
from feature_repo.feast_fields import MADE_BY, OWNER, key, vector, vector_id

UNTIL_REPLACED = timedelta(0)
"""Feast's way of saying "no limit": a vector holds until the next one comes."""


def vector_views(
    entity: Entity,
    *,
    name: str,
    table: str,
    grain: str,
    table_key: str,
    id_feature: str,
    vector_feature: str,
    description: str,
    beside_id: Sequence[Field] = (),
    beside_vector: Sequence[Field] = (),
    lake: str | None = None,
) -> tuple[FeatureView, FeatureView]:
    """The version view and the vector view over one table.

    Args:
        entity: whose vectors; its join key may have another name than the table's.
        name: of the vector view and of its matrix; the version view is `<name>_version`.
        table: in the lake.
        grain: of the table.
        table_key: the table's key, e.g. "item_id".
        id_feature: the table's column of vector ids.
        vector_feature: the table's column of vectors.
        description: what the vectors say.
        beside_id: further features of the version view.
        beside_vector: further features of the vector view.
        lake: folder of the lake (`lake_folder`).
    """
    source = lake_table(table, grain, lake=lake, renamed={table_key: entity.join_key})
    tags = {**MADE_BY, "lake_table": table}
    version = FeatureView(
        name=f"{name}_version",
        entities=[entity],
        ttl=UNTIL_REPLACED,
        schema=[
            key(entity.join_key),
            vector_id(id_feature, name, f"which vector of {name} held at the time"),
            *beside_id,
        ],
        source=source,
        description=f"Which vector of {name} holds.",
        owner=OWNER,
        tags=tags,
    )
    vectors = FeatureView(
        name=name,
        entities=[entity],
        ttl=UNTIL_REPLACED,
        schema=[key(entity.join_key), vector(vector_feature, name, table, description, lake), *beside_vector],
        source=source,
        description=description,
        owner=OWNER,
        tags=tags,
    )
    return version, vectors
