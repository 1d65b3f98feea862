"""One service a model: the features it is trained on, and is served with. Each adds to the one before."""

from feast import FeatureService
from feature_views import (
    item_activity,
    item_attributes,
    item_content,
    item_content_version,
    item_learn,
    item_learn_version,
    user_activity,
    user_content,
    user_content_version,
    user_history,
    user_interest_learn,
    user_interest_learn_version,
    user_item_content_cosine,
    user_item_learn_cosine,
)

BASE = [user_activity, user_history, item_activity, item_attributes]
CONTENT = [user_content_version, user_content, item_content_version, item_content, user_item_content_cosine]
LEARN = [user_interest_learn_version, user_interest_learn, item_learn_version, item_learn, user_item_learn_cosine]

ranker_base_v1 = FeatureService(
    name="ranker_base_v1",
    features=BASE,
    description="What a ranker without language models knows: ids, activity, history, catalogue fields.",
    owner="tailrank",
    tags={"made_by": "tailrank", "stage": "baseline"},
)

ranker_content_v1 = FeatureService(
    name="ranker_content_v1",
    features=[*BASE, *CONTENT],
    description="ranker_base_v1, and what items are about and users want, as a frozen language model sees it.",
    owner="tailrank",
    tags={"made_by": "tailrank", "stage": "candidate"},
)

ranker_learn_v1 = FeatureService(
    name="ranker_learn_v1",
    features=[*BASE, *CONTENT, *LEARN],
    description="ranker_content_v1, and what users want and items offer, aligned by what was clicked (LEARN).",
    owner="tailrank",
    tags={"made_by": "tailrank", "stage": "candidate"},
)
