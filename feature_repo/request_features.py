"""Features computed when they are asked for, from features that are stored."""

import inspect
from collections.abc import Callable
from typing import Any

from feast import Field, OnDemandFeatureView
from feast.feature_view import FeatureView
from feast.types import Float64

from feature_repo.feast_fields import MADE_BY, OWNER


def cosines(ones: list[list[float] | None], others: list[list[float] | None]) -> list[float | None]:
    """Cosine of each pair of vectors; null where either is missing."""
    # Feast rebuilds an on-demand function from its source text, without the module around it: all it needs is inside.
    import numpy as np

    found: list[float | None] = []
    for one, other in zip(ones, others, strict=True):
        if one is None or other is None or len(one) == 0 or len(other) == 0:
            found.append(None)
            continue
        a, b = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
        norms = float(np.sqrt((a @ a) * (b @ b)))
        found.append(float(a @ b) / norms if norms > 0.0 else None)
    return found


def relevances(
    cosines_of_pairs: list[float | None], scales: list[float | None], biases: list[float | None]
) -> list[float | None]:
    """sigmoid(scale * cosine + bias) of each pair; null where any of them is."""
    import math

    found: list[float | None] = []
    for cosine, scale, bias in zip(cosines_of_pairs, scales, biases, strict=True):
        if cosine is None or scale is None or bias is None:
            found.append(None)
            continue
        logit = scale * cosine + bias
        small = math.exp(-abs(logit))  # of the side that cannot overflow
        found.append(1.0 / (1.0 + small) if logit >= 0.0 else small / (1.0 + small))
    return found


def user_item_content_cosine_view(user_content: FeatureView, item_content: FeatureView) -> OnDemandFeatureView:
    """How close an item is to what a user's history is about."""
    return _cosine_view(
        "user_item_content_cosine",
        user_content,
        item_content,
        "How close an item is to what a user's history is about.",
    )


def user_item_learn_cosine_view(user_interest_learn: FeatureView, item_learn: FeatureView) -> OnDemandFeatureView:
    """How close an item is to what a user wants next: what LEARN's loss is about."""
    return _cosine_view(
        "user_item_learn_cosine",
        user_interest_learn,
        item_learn,
        "How close an item is to what a user wants next, as LEARN sees it.",
    )


def user_item_karma_cosine_view(user_interest_karma: FeatureView, item_karma: FeatureView) -> OnDemandFeatureView:
    """How close an item is to what a user wants next: what KARMA's action loss is about."""
    return _cosine_view(
        "user_item_karma_cosine",
        user_interest_karma,
        item_karma,
        "How close an item is to what a user wants next, as KARMA sees it.",
    )


def relevance_on_demand_view(query_relevance: FeatureView, item_relevance: FeatureView) -> OnDemandFeatureView:
    """How relevant an item is to a query, for any pair: the calibrated cosine of their vectors.

    Beside the query's vector its view has the scale and the bias, which are read here and are features of no service.
    """
    query_vector, scale, bias = (one.name for one in query_relevance.features)
    (item_vector,) = (one.name for one in item_relevance.features)
    name = "relevance_on_demand"
    return _computed_view(
        name,
        [query_relevance, item_relevance],
        [cosines, relevances],
        f"relevances(cosines(inputs[{query_vector!r}], inputs[{item_vector!r}]), inputs[{scale!r}], inputs[{bias!r}])",
        role="rate",
        description="How relevant an item is to a query, also of a pair that was never shown (MKD, representation).",
    )


def _cosine_view(name: str, user: FeatureView, item: FeatureView, description: str) -> OnDemandFeatureView:
    """The cosine of the two views' vectors (each view's one feature), under `name`."""
    (user_vector,), (item_vector,) = user.features, item.features
    return _computed_view(
        name,
        [user, item],
        [cosines],
        f"cosines(inputs[{user_vector.name!r}], inputs[{item_vector.name!r}])",
        role="scalar",
        description=description,
    )


def _computed_view(
    name: str,
    sources: list[FeatureView],
    functions: list[Callable[..., Any]],
    expression: str,
    *,
    role: str,
    description: str,
) -> OnDemandFeatureView:
    """The view of one feature, `name`: `expression` of `inputs`, in which `functions` may be called."""
    source = "\n\n".join(inspect.getsource(one) for one in functions)
    source += f"\n\ndef {name}(inputs):\n    return {{{name!r}: {expression}}}\n"
    names: dict[str, Any] = {}
    exec(source, names)  # as Feast does wherever it reads the registry, so that one function runs everywhere
    return OnDemandFeatureView(
        name=name,
        sources=sources,
        # Feast infers the fields and wants the declared ones equal, so a field cannot have tags: the view has the role.
        schema=[Field(name=name, dtype=Float64)],
        mode="python",
        udf=names[name],
        udf_string=source,
        description=description,
        owner=OWNER,
        tags={**MADE_BY, "role": role},
    )
