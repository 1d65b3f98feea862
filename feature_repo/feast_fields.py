"""Fields as our feature views declare them: what a column is for (`role`) and which model made it (fingerprint).

The tag `role` tells whoever builds a training set or a ranker how to treat a column:

    scalar       a number, on its own scale
    count        events in a window, skewed: take its logarithm
    rate         a share in [0, 1]
    categorical  a string with few distinct values
    history      ids of the items acted on, oldest first
    timestamps   one time for each id of a history (Feast's online stores keep whole seconds of it)
    vector       an embedding; training joins the vector's id instead and gathers the vector later
    vector_id    row of the matrix named by the tag `matrix`

Functions only: this file can be imported as `feature_repo.feast_fields` into any Feast repo.
"""

from feast import Field
from feast.types import Array, FeastType, Float32, Float64, Int64, String, UnixTimestamp

from feature_repo.data_sources import fingerprint_of

OWNER = "tailrank"
MADE_BY = {"made_by": "tailrank"}
"""On every object of ours, so that `publish_features` can tell ours from a team's own."""


def key(name: str) -> Field:
    """A join key, declared because Feast cannot infer the types that polars writes."""
    return Field(name=name, dtype=String, description="join key", tags=MADE_BY)


def scalar(name: str, description: str, dtype: FeastType = Float64) -> Field:
    """A number on its own scale."""
    return _field(name, dtype, "scalar", description)


def count(name: str, description: str) -> Field:
    """Events in a window."""
    return _field(name, Int64, "count", description)


def rate(name: str, description: str) -> Field:
    """A share in [0, 1]."""
    return _field(name, Float64, "rate", description)


def categorical(name: str, description: str) -> Field:
    """A string with few distinct values."""
    return _field(name, String, "categorical", description)


def history(name: str, description: str) -> Field:
    """Ids of the items acted on, oldest first."""
    return _field(name, Array(String), "history", description)


def timestamps(name: str, description: str) -> Field:
    """One time for each id of a history."""
    return _field(name, Array(UnixTimestamp), "timestamps", description)


def vector_id(name: str, matrix: str, description: str) -> Field:
    """Id of a vector; `matrix` is the view (and the lake's matrix) that holds the vector itself."""
    return _field(name, Int64, "vector_id", description, {"matrix": matrix})


def vector(name: str, matrix: str, table: str, description: str, lake: str | None = None) -> Field:
    """A unit-norm embedding, tagged with the fingerprint of the model that made the vectors in `table`."""
    fingerprint = fingerprint_of(table, lake)
    return Field(
        name=name,
        dtype=Array(Float32),
        description=description,
        vector_index=True,
        vector_length=int(fingerprint["dimension"]),
        vector_search_metric="COSINE",
        tags={**MADE_BY, **fingerprint, "role": "vector", "matrix": matrix},
    )


def activity(entity: str, windows_days: tuple[int, ...] = (1, 7, 30, 180)) -> list[Field]:
    """Trailing-window counts and smoothed rates of `entity` ("item" or "user"), as `table_schemas` declares them."""
    counts = [
        count(f"{entity}_num_{what}_{days}d", f"{what} in the {days} days before midnight")
        for what in ("impressions", "clicks", "conversions")
        for days in windows_days
    ]
    rates = [
        rate(f"{entity}_{short}_{days}d", f"{what} over the {days} days before midnight, smoothed")
        for short, what in (("ctr", "clicks per impression"), ("cvr", "conversions per click"))
        for days in windows_days
    ]
    return counts + rates


def _field(name: str, dtype: FeastType, role: str, description: str, tags: dict[str, str] | None = None) -> Field:
    return Field(name=name, dtype=dtype, description=description, tags={**MADE_BY, "role": role, **(tags or {})})
