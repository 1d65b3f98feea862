"""One service a model: the features it is trained on, and is served with. Each adds to an earlier one."""

from feast import FeatureService
from feature_views import (
    item_activity,
    item_attributes,
    item_content,
    item_content_version,
    item_karma,
    item_karma_version,
    item_learn,
    item_learn_version,
    item_relevance,
    item_relevance_version,
    query_item_relevance,
    query_relevance,
    query_relevance_version,
    relevance_on_demand,
    user_activity,
    user_content,
    user_content_version,
    user_history,
    user_interest_karma,
    user_interest_karma_version,
    user_interest_learn,
    user_interest_learn_version,
    user_item_content_cosine,
    user_item_karma_cosine,
    user_item_learn_cosine,
)

BASE = [user_activity, user_history, item_activity, item_attributes]
CONTENT = [user_content_version, user_content, item_content_version, item_content, user_item_content_cosine]
LEARN = [user_interest_learn_version, user_interest_learn, item_learn_version, item_learn, user_item_learn_cosine]
KARMA = [user_interest_karma_version, user_interest_karma, item_karma_version, item_karma, user_item_karma_cosine]
RELEVANCE = [
    query_relevance_version,
    query_relevance[["query_relevance_embedding"]],
    item_relevance_version,
    item_relevance,
    query_item_relevance,
    relevance_on_demand,
]

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

ranker_karma_v1 = FeatureService(
    name="ranker_karma_v1",
    features=[*BASE, *CONTENT, *KARMA],
    description="ranker_content_v1, and what users want and items offer, as a language model reads histories (KARMA).",
    owner="tailrank",
    tags={"made_by": "tailrank", "stage": "candidate"},
)

ranker_relevance_v1 = FeatureService(
    name="ranker_relevance_v1",
    features=[*BASE, *CONTENT, *RELEVANCE],
    description="ranker_content_v1, and how relevant items are to queries, distilled from a teacher (ELLM-rele, MKD).",
    owner="tailrank",
    tags={"made_by": "tailrank", "stage": "candidate"},
)

ranker_all_v1 = FeatureService(
    name="ranker_all_v1",
    features=[*BASE, *CONTENT, *LEARN, *KARMA, *RELEVANCE],
    description="All of them: ranker_content_v1 with LEARN, KARMA and relevance.",
    owner="tailrank",
    tags={"made_by": "tailrank", "stage": "candidate"},
)
