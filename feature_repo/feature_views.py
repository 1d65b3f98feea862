"""The views of our own Feast project: those of the modules named `*_features.py`, under our entities."""

from entities import item, query, user

from feature_repo.item_features import (
    item_activity_view,
    item_attributes_view,
    item_content_views,
    item_karma_views,
    item_learn_views,
)
from feature_repo.query_item_features import item_relevance_views, query_item_relevance_view, query_relevance_views
from feature_repo.request_features import (
    relevance_on_demand_view,
    user_item_content_cosine_view,
    user_item_karma_cosine_view,
    user_item_learn_cosine_view,
)
from feature_repo.user_features import (
    user_activity_view,
    user_content_views,
    user_history_view,
    user_karma_views,
    user_learn_views,
)

item_activity = item_activity_view(item)
item_attributes = item_attributes_view(item)
item_content_version, item_content = item_content_views(item)
item_learn_version, item_learn = item_learn_views(item)
item_karma_version, item_karma = item_karma_views(item)

user_activity = user_activity_view(user)
user_history = user_history_view(user)
user_content_version, user_content = user_content_views(user)
user_interest_learn_version, user_interest_learn = user_learn_views(user)
user_interest_karma_version, user_interest_karma = user_karma_views(user)

query_relevance_version, query_relevance = query_relevance_views(query)
item_relevance_version, item_relevance = item_relevance_views(item)
query_item_relevance = query_item_relevance_view(query, item)

user_item_content_cosine = user_item_content_cosine_view(user_content, item_content)
user_item_learn_cosine = user_item_learn_cosine_view(user_interest_learn, item_learn)
user_item_karma_cosine = user_item_karma_cosine_view(user_interest_karma, item_karma)
relevance_on_demand = relevance_on_demand_view(query_relevance, item_relevance)
