"""Features computed when they are asked for, from features that are stored."""

import inspect
from typing import Any

from feast import Field, OnDemandFeatureView
from feast.feature_view import FeatureView
from feast.types import Float64

from feature_repo.feast_fields import MADE_BY, OWNER


def user_item_content_cosine(inputs: dict[str, Any]) -> dict[str, Any]:
    """Cosine between interest and content, a list of rows at a time; null where either is missing."""
    # Feast rebuilds this function from its source text, without the module around it: all it needs is inside.
    import numpy as np

    cosines: list[float | None] = []
    for interest, content in zip(inputs["user_content_interest"], inputs["item_content_embedding"], strict=True):
        if interest is None or content is None or len(interest) == 0 or len(content) == 0:
            cosines.append(None)
            continue
        u, i = np.asarray(interest, dtype=np.float64), np.asarray(content, dtype=np.float64)
        norms = float(np.sqrt((u @ u) * (i @ i)))
        cosines.append(float(u @ i) / norms if norms > 0.0 else None)
    return {"user_item_content_cosine": cosines}


def user_item_content_cosine_view(user_content: FeatureView, item_content: FeatureView) -> OnDemandFeatureView:
    """How close an item is to what a user's history is about."""
    return OnDemandFeatureView(
        name="user_item_content_cosine",
        sources=[user_content, item_content],
        # Feast infers the fields and wants the declared ones equal, so a field cannot have tags: the view has the role.
        schema=[Field(name="user_item_content_cosine", dtype=Float64)],
        mode="python",
        udf=user_item_content_cosine,
        udf_string=inspect.getsource(user_item_content_cosine),
        description="How close an item is to what a user's history is about.",
        owner=OWNER,
        tags={**MADE_BY, "role": "scalar"},
    )
