"""From training set to report."""

import dataframely as dy

from feature_repo.table_schemas.columns import count, identifier, key, probability, time


class SplitWindows(dy.Schema):
    """One row per split: `start` <= event_timestamp < `end`. Labels of a split are known at `labels_as_of`."""

    split = dy.Enum(["train", "validation", "test"], primary_key=True)
    start = time()
    end = time()
    labels_as_of = time()
    num_impressions = count()


class TrainingExamples(dy.Schema):
    """One row per impression, with the features known at that moment. Feature columns follow the ones declared here.

    `converted` is null where the conversion window had not passed by the split's `labels_as_of`.
    """

    impression_id = key()
    user_id = identifier()
    item_id = identifier()
    event_timestamp = time()
    split = dy.Enum(["train", "validation", "test"], nullable=False)
    clicked = dy.Bool(nullable=False)
    converted = dy.Bool(nullable=True)
    is_sampled = dy.Bool(nullable=False)


class UserSegments(dy.Schema):
    """One row per user of the test split: tier by clicks in the 180 days before the test window (LEARN)."""

    user_id = key()
    user_segment = dy.Enum(["cold_start", "long_tail", "others"], nullable=False)
    num_interactions = count()


class ItemSegments(dy.Schema):
    """One row per item of the test split: tier by conversions (or clicks) in the 180 days before the test window."""

    item_id = key()
    item_segment = dy.Enum(["cold_start", "long_tail", "others"], nullable=False)
    num_interactions = count()


class ImpressionSegments(dy.Schema):
    """One row per impression of the test split. A String column for each kind of segment follows (null: in none).

    What is true of the user and the item is taken as of the start of the test window, never from the test itself.
    """

    impression_id = key()


class Predictions(dy.Schema):
    """One row per impression: the label and a model's scores. All that evaluation reads, whoever made the model."""

    impression_id = key()
    user_id = identifier()
    item_id = identifier()
    event_timestamp = time()
    clicked = dy.Bool(nullable=False)
    converted = dy.Bool(nullable=True)
    p_ctr = probability()
    p_cvr = probability(nullable=True)
    p_ctcvr = probability(nullable=True)
    user_segment = dy.String(nullable=True)
    item_segment = dy.String(nullable=True)


class RankerPredictions(Predictions):
    """One row per (ranker, seed, impression) of the test split."""

    ranker = key()
    seed = dy.Int64(primary_key=True)


class ValidationPredictions(RankerPredictions):
    """One row per (ranker, seed, impression) of the validation split: what probabilities are recalibrated on."""


class TrainingCurves(dy.Schema):
    """One row per (ranker, seed, epoch)."""

    ranker = key()
    seed = dy.Int64(primary_key=True)
    epoch = dy.Int32(primary_key=True, min=0)
    train_loss = dy.Float64(nullable=False)
    validation_loss = dy.Float64(nullable=False)
    validation_uauc = dy.Float64(nullable=True, min=0.0, max=1.0)
    seconds = dy.Float64(nullable=False, min=0.0)
    is_best = dy.Bool(nullable=False)


class SegmentMetrics(dy.Schema):
    """One row per (ranker, label, segment kind, segment, metric): value, interval, and gain over the baseline."""

    ranker = key()
    label = key()  # clicked | converted | clicked_and_converted
    segment_kind = key()  # all | user_segment | item_segment | ...
    segment = key()
    metric = key()  # auc | uauc | wuauc
    value = dy.Float64(nullable=True, min=0.0, max=1.0)
    low = dy.Float64(nullable=True)
    high = dy.Float64(nullable=True)
    num_impressions = count()
    num_positives = count()
    num_users = count()
    num_users_skipped = count()  # uauc, wuauc: users whose impressions are all positive or all negative
    num_impressions_skipped = count()  # of those users, out of num_impressions
    num_positives_skipped = count()
    num_seeds = dy.Int64(nullable=False, min=1)  # `value` is the mean over them
    seed_standard_deviation = dy.Float64(nullable=True, min=0.0)  # of the value from seed to seed; null with one
    baseline = dy.String(nullable=True)
    gain = dy.Float64(nullable=True)  # value - the baseline's, paired by user
    gain_low = dy.Float64(nullable=True)
    gain_high = dy.Float64(nullable=True)
    p_value = dy.Float64(nullable=True, min=0.0, max=1.0)  # Holm-adjusted over the segments of one table
    minimum_detectable = dy.Float64(nullable=True, min=0.0)  # gain found with power 0.8 at level 0.05, before Holm
    verdict = dy.String(nullable=True)  # better | worse | no difference | cannot tell


class CalibrationMetrics(dy.Schema):
    """One row per (ranker, label, segment kind, segment, method): are the probabilities right?"""

    ranker = key()
    label = key()
    segment_kind = key()
    segment = key()
    method = key()  # as scored | isotonic | platt; fitted on the validation split, judged on the test split
    num_impressions = count()
    num_positives = count()
    num_seeds = dy.Int64(nullable=False, min=1)  # every figure is the mean over them
    mean_predicted = probability()
    observed_rate = probability()
    predicted_over_observed = dy.Float64(nullable=True, min=0.0)  # null without positives
    log_loss = dy.Float64(nullable=False, min=0.0)  # nats per impression
    normalised_entropy = dy.Float64(nullable=True, min=0.0)  # null where one class is missing
    expected_calibration_error = probability()


class FeatureGroupValues(dy.Schema):
    """One row per (ranker, feature group, method, segment kind, segment, metric): what the group is worth, on clicks.

    `value_lost` is the metric with the group minus the metric without it: positive where the group helps.
    """

    ranker = key()
    feature_group = key()
    method = key()  # retrained: trained again without the group | permuted: its values shuffled within each user
    segment_kind = key()
    segment = key()
    metric = key()  # uauc | wuauc
    value_with = dy.Float64(nullable=True, min=0.0, max=1.0)
    value_without = dy.Float64(nullable=True, min=0.0, max=1.0)
    value_lost = dy.Float64(nullable=True)
    low = dy.Float64(nullable=True)
    high = dy.Float64(nullable=True)
    p_value = dy.Float64(nullable=True, min=0.0, max=1.0)  # Holm-adjusted over the segments
    verdict = dy.String(nullable=True)  # helps | hurts | no difference | cannot tell
    num_users = count()
    num_seeds = dy.Int64(nullable=False, min=1)


class FeatureGroupCosts(dy.Schema):
    """One row per (ranker, feature group): what having it costs."""

    ranker = key()
    feature_group = key()
    num_features = count()
    seconds_to_make = dy.Float64(nullable=True, min=0.0)  # of the steps that make it, when they last ran; null: given
    num_bytes_online = dy.Int64(nullable=True, min=0)  # in the online store, all entities; null where not published
    rows_per_second_with = dy.Float64(nullable=True, min=0.0)  # scored by the ranker
    rows_per_second_without = dy.Float64(nullable=True, min=0.0)
