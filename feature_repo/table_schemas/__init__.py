"""Every table of the lake, declared once: grain, key, columns, units, ranges.

This is the contract that the packages share. `jobs.lake` validates each table against its schema whenever
it writes one, so a frame typed `dy.DataFrame[Impressions]` can be trusted without looking at it again.

Conventions
    ids       strings (real ids are); an id is never empty
    time      UTC, microseconds. `event_timestamp` of a feature row is when the value became *available*;
              `created_timestamp` is when the row was written, and a join for training must not see rows
              written after the impression
    windows   in the name: `item_num_clicks_7d` counts clicks in the 7 days before midnight of the row's day
    vectors   float32, unit norm, finite; the width is in the table's fingerprint
    names     unique over all feature tables, so that any of them may meet in one feature service
"""

from feature_repo.table_schemas.activity_tables import (
    ItemActivity,
    UserActivity,
    UserHistories,
)
from feature_repo.table_schemas.columns import ACTIVITY_WINDOWS_DAYS, EARLIEST, MAX_TEXT_CHARACTERS
from feature_repo.table_schemas.embedding_tables import (
    EmbedderCurves,
    ItemContentEmbeddings,
    ItemImageEmbeddings,
    ItemKarmaEmbeddings,
    ItemLearnEmbeddings,
    KarmaAttention,
    KarmaCurves,
    LearnAttention,
    UserContentInterests,
    UserKarmaInterests,
    UserLearnInterests,
)
from feature_repo.table_schemas.evaluation_tables import (
    CalibrationMetrics,
    FeatureGroupCosts,
    FeatureGroupValues,
    ImpressionSegments,
    ItemSegments,
    Predictions,
    RankerPredictions,
    SegmentMetrics,
    SplitWindows,
    TrainingCurves,
    TrainingExamples,
    UserSegments,
    ValidationPredictions,
)
from feature_repo.table_schemas.relevance_tables import (
    ItemRelevanceEmbeddings,
    QueryEmbeddings,
    QueryItemRelevance,
    RelevanceAnswers,
    RelevanceChains,
    RelevanceMetrics,
    StudentCurves,
)
from feature_repo.table_schemas.source_tables import (
    Impressions,
    ItemImages,
    Items,
    Queries,
    RelevanceGrades,
    TrueProbabilities,
    Users,
)

__all__ = [
    "ACTIVITY_WINDOWS_DAYS",
    "EARLIEST",
    "MAX_TEXT_CHARACTERS",
    "CalibrationMetrics",
    "EmbedderCurves",
    "FeatureGroupCosts",
    "FeatureGroupValues",
    "ImpressionSegments",
    "Impressions",
    "ItemActivity",
    "ItemContentEmbeddings",
    "ItemImageEmbeddings",
    "ItemImages",
    "ItemKarmaEmbeddings",
    "ItemLearnEmbeddings",
    "ItemRelevanceEmbeddings",
    "ItemSegments",
    "Items",
    "KarmaAttention",
    "KarmaCurves",
    "LearnAttention",
    "Predictions",
    "Queries",
    "QueryEmbeddings",
    "QueryItemRelevance",
    "RankerPredictions",
    "RelevanceAnswers",
    "RelevanceChains",
    "RelevanceGrades",
    "RelevanceMetrics",
    "SegmentMetrics",
    "SplitWindows",
    "StudentCurves",
    "TrainingCurves",
    "TrainingExamples",
    "TrueProbabilities",
    "UserActivity",
    "UserContentInterests",
    "UserHistories",
    "UserKarmaInterests",
    "UserLearnInterests",
    "UserSegments",
    "Users",
    "ValidationPredictions",
]
