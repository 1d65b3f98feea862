"""One service a model: the features it is trained on, and is served with."""

from feast import FeatureService
from feature_views import (
    item_activity,
    item_attributes,
    item_content,
    item_content_version,
    user_activity,
    user_content,
    user_content_version,
    user_history,
    user_item_content_cosine,
)

ranker_base_v1 = FeatureService(
    name="ranker_base_v1",
    features=[user_activity, user_history, item_activity, item_attributes],
    description="What a ranker without language models knows: ids, activity, history, catalogue fields.",
    owner="tailrank",
    tags={"made_by": "tailrank", "stage": "baseline"},
)

ranker_content_v1 = FeatureService(
    name="ranker_content_v1",
    features=[
        user_activity,
        user_history,
        item_activity,
        item_attributes,
        user_content_version,
        user_content,
        item_content_version,
        item_content,
        user_item_content_cosine,
    ],
    description="ranker_base_v1, and what items are about and users want, as a frozen language model sees it.",
    owner="tailrank",
    tags={"made_by": "tailrank", "stage": "candidate"},
)
