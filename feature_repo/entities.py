"""Who features are about."""

from feast import Entity, ValueType

user = Entity(
    name="user",
    join_keys=["user_id"],
    value_type=ValueType.STRING,
    description="Someone to whom items are shown.",
    owner="tailrank",
    tags={"made_by": "tailrank"},
)

item = Entity(
    name="item",
    join_keys=["item_id"],
    value_type=ValueType.STRING,
    description="Something that can be shown, clicked and bought.",
    owner="tailrank",
    tags={"made_by": "tailrank"},
)

query = Entity(
    name="query",
    join_keys=["query_id"],
    value_type=ValueType.STRING,
    description="What somebody typed to find items; in a feed there is none.",
    owner="tailrank",
    tags={"made_by": "tailrank"},
)
