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

import datetime as dt

import dataframely as dy
import polars as pl

EARLIEST = dt.datetime(1990, 1, 1, tzinfo=dt.timezone.utc)
"""No log of ours is older; an older time is a wrong unit (seconds read as microseconds) or a dummy value."""

MAX_TEXT_CHARACTERS = 32_768
"""A longer text in an item table is a broken export (a page of HTML, a shifted column), not a description."""

ACTIVITY_WINDOWS_DAYS = (1, 7, 30, 180)
"""Trailing windows of the activity tables. 180 days is also the look-back of the segments (LEARN: six months)."""


def _key() -> dy.String:
    return dy.String(primary_key=True, min_length=1)


def _id(nullable: bool = False) -> dy.String:
    return dy.String(nullable=nullable, min_length=1)


def _time(primary_key: bool = False, nullable: bool = False) -> dy.Datetime:
    return dy.Datetime(
        primary_key=primary_key, nullable=nullable and not primary_key, time_unit="us", time_zone="UTC", min=EARLIEST
    )


def _text() -> dy.String:
    return dy.String(nullable=True, max_length=MAX_TEXT_CHARACTERS)


def _count() -> dy.Int64:
    return dy.Int64(nullable=False, min=0)


def _probability(nullable: bool = False) -> dy.Float64:
    return dy.Float64(nullable=nullable, min=0.0, max=1.0)


def _vector() -> dy.List:
    return dy.List(dy.Float32(nullable=False), nullable=False, min_length=1)


def _finite_unit_norm(column: str) -> pl.Expr:
    """True where a vector is finite and of length 1 (polars orders NaN above every number, so NaN fails too)."""
    squared = pl.col(column).list.eval(pl.element().cast(pl.Float64) ** 2).list.sum()
    return (squared - 1.0).abs() < 1e-3


# --- canonical tables: what a raw source must give -----------------------------------------------------------


class Items(dy.Schema):
    """One row per item, as it is now. Category, brand and price are also served by Feast, as ID features."""

    item_id = _key()
    title = _text()
    category = _text()
    brand = _text()
    price_cents = dy.Int64(nullable=True, min=0)
    keywords = _text()
    attributes = _text()
    description = _text()
    event_timestamp = _time()  # since when the item can be shown
    created_timestamp = _time()


class Users(dy.Schema):
    """One row per user."""

    user_id = _key()
    event_timestamp = _time()  # first seen


class Queries(dy.Schema):
    """One row per distinct query."""

    query_id = _key()
    query_text = dy.String(nullable=False, min_length=1, max_length=MAX_TEXT_CHARACTERS)


class Impressions(dy.Schema):
    """One row per item shown to a user, with what came of it. A conversion counts from `conversion_timestamp` on."""

    impression_id = _key()
    request_id = _id(nullable=True)  # the slate: one page of results
    user_id = _id()
    item_id = _id()
    query_id = _id(nullable=True)  # null in a feed
    position = dy.Int32(nullable=True, min=0)  # 0 = top of the slate
    event_timestamp = _time()
    clicked = dy.Bool(nullable=False)
    converted = dy.Bool(nullable=False)
    conversion_timestamp = _time(nullable=True)
    is_sampled = dy.Bool(nullable=False)  # a negative drawn by us: nobody saw this item

    @dy.rule()
    def conversion_needs_click(cls) -> pl.Expr:
        return ~pl.col("converted") | pl.col("clicked")

    @dy.rule()
    def conversion_timestamp_goes_with_converted(cls) -> pl.Expr:
        return pl.col("converted") == pl.col("conversion_timestamp").is_not_null()

    @dy.rule()
    def conversion_not_before_impression(cls) -> pl.Expr:
        return pl.col("conversion_timestamp").is_null() | (pl.col("conversion_timestamp") >= pl.col("event_timestamp"))

    @dy.rule()
    def sampled_rows_are_negatives(cls) -> pl.Expr:
        return ~pl.col("is_sampled") | ~pl.col("clicked")


class RelevanceGrades(dy.Schema):
    """One row per judged (query, item): by people, or by the simulator's rule."""

    query_id = _key()
    item_id = _key()
    grade = dy.Float64(nullable=False, min=0.0, max=3.0)  # 0 irrelevant .. 3 exact


class TrueProbabilities(dy.Schema):
    """One row per simulated impression: the probabilities its outcome was drawn from. The ceiling of any ranker."""

    impression_id = _key()
    p_ctr = _probability()
    p_cvr = _probability()  # of converting, given the click
    p_ctcvr = _probability()


# --- feature tables: what Feast serves -----------------------------------------------------------------------


class UserActivity(dy.Schema):
    """One row per (user, midnight) at which a trailing count changes. Knows nothing of the day that begins then."""

    user_id = _key()
    event_timestamp = _time(primary_key=True)
    created_timestamp = _time()
    user_num_impressions_1d = _count()
    user_num_impressions_7d = _count()
    user_num_impressions_30d = _count()
    user_num_impressions_180d = _count()
    user_num_clicks_1d = _count()
    user_num_clicks_7d = _count()
    user_num_clicks_30d = _count()
    user_num_clicks_180d = _count()
    user_num_conversions_1d = _count()
    user_num_conversions_7d = _count()
    user_num_conversions_30d = _count()
    user_num_conversions_180d = _count()
    user_ctr_1d = _probability()  # rates are smoothed towards the log's own rate so far
    user_ctr_7d = _probability()
    user_ctr_30d = _probability()
    user_ctr_180d = _probability()
    user_cvr_1d = _probability()
    user_cvr_7d = _probability()
    user_cvr_30d = _probability()
    user_cvr_180d = _probability()


class ItemActivity(dy.Schema):
    """One row per (item, midnight) at which a trailing count changes. Knows nothing of the day that begins then."""

    item_id = _key()
    event_timestamp = _time(primary_key=True)
    created_timestamp = _time()
    item_num_impressions_1d = _count()
    item_num_impressions_7d = _count()
    item_num_impressions_30d = _count()
    item_num_impressions_180d = _count()
    item_num_clicks_1d = _count()
    item_num_clicks_7d = _count()
    item_num_clicks_30d = _count()
    item_num_clicks_180d = _count()
    item_num_conversions_1d = _count()
    item_num_conversions_7d = _count()
    item_num_conversions_30d = _count()
    item_num_conversions_180d = _count()
    item_ctr_1d = _probability()
    item_ctr_7d = _probability()
    item_ctr_30d = _probability()
    item_ctr_180d = _probability()
    item_cvr_1d = _probability()
    item_cvr_7d = _probability()
    item_cvr_30d = _probability()
    item_cvr_180d = _probability()


class UserHistories(dy.Schema):
    """One row per (user, midnight after a day with clicks): the last items clicked before it, newest last."""

    user_id = _key()
    event_timestamp = _time(primary_key=True)
    created_timestamp = _time()
    history_item_ids = dy.List(dy.String(nullable=False), nullable=False, min_length=1)
    history_timestamps = dy.List(dy.Datetime(nullable=False, time_unit="us", time_zone="UTC"), nullable=False)

    @dy.rule()
    def one_timestamp_per_item(cls) -> pl.Expr:
        return pl.col("history_item_ids").list.len() == pl.col("history_timestamps").list.len()

    @dy.rule()
    def history_is_older_than_the_row(cls) -> pl.Expr:
        return pl.col("history_timestamps").list.max() < pl.col("event_timestamp")


class ItemContentEmbeddings(dy.Schema):
    """One row per (item, event_timestamp): its text through a frozen encoder (LEARN, content extraction)."""

    item_id = _key()
    event_timestamp = _time(primary_key=True)
    created_timestamp = _time()
    item_content_vector_id = dy.Int64(nullable=False, min=0, unique=True)
    item_content_embedding = _vector()
    item_content_hash = dy.String(
        nullable=False, min_length=1
    )  # of the prompt text: unchanged text is not encoded again

    @dy.rule()
    def item_content_embedding_is_finite_and_unit_norm(cls) -> pl.Expr:
        return _finite_unit_norm("item_content_embedding")


class UserContentInterests(dy.Schema):
    """One row per (user, midnight): mean content vector of the user's history (LEARN's no-alignment baseline)."""

    user_id = _key()
    event_timestamp = _time(primary_key=True)
    created_timestamp = _time()
    user_content_vector_id = dy.Int64(nullable=False, min=0, unique=True)
    user_content_interest = _vector()
    user_content_num_items = dy.Int64(nullable=False, min=1)  # history items that had a vector
    user_content_hash = dy.String(nullable=False, min_length=1)  # of those vectors' ids: unchanged, not averaged again

    @dy.rule()
    def user_content_interest_is_finite_and_unit_norm(cls) -> pl.Expr:
        return _finite_unit_norm("user_content_interest")


class EmbedderCurves(dy.Schema):
    """One row per (method, epoch) of the training of an embedding model. The model: metadata of the manifest.

    The manifest's fingerprint is the model's; its metadata names the folder of the weights.
    """

    method = dy.String(primary_key=True, min_length=1)  # learn
    epoch = dy.Int32(primary_key=True, min=0)
    train_loss = dy.Float64(nullable=False)
    validation_recall = dy.Float64(nullable=True, min=0.0, max=1.0)  # R@K of held-out targets; null: none to hold out
    seconds = dy.Float64(nullable=False, min=0.0)
    is_best = dy.Bool(nullable=False)


class ItemLearnEmbeddings(dy.Schema):
    """One row per (item, event_timestamp): its content vector through LEARN's item tower.

    Never earlier than the last interaction that the model was trained on (`trained_through` of the fingerprint).
    """

    item_id = _key()
    event_timestamp = _time(primary_key=True)
    created_timestamp = _time()
    item_learn_vector_id = dy.Int64(nullable=False, min=0, unique=True)
    item_learn_embedding = _vector()
    item_learn_content_vector_id = dy.Int64(nullable=False, min=0)  # the content vector that it was made of

    @dy.rule()
    def item_learn_embedding_is_finite_and_unit_norm(cls) -> pl.Expr:
        return _finite_unit_norm("item_learn_embedding")


class UserLearnInterests(dy.Schema):
    """One row per (user, midnight): the user's history through LEARN's user tower.

    Never earlier than the last interaction that the model was trained on (`trained_through` of the fingerprint).
    """

    user_id = _key()
    event_timestamp = _time(primary_key=True)
    created_timestamp = _time()
    user_learn_vector_id = dy.Int64(nullable=False, min=0, unique=True)
    user_learn_interest = _vector()
    user_learn_num_items = dy.Int64(nullable=False, min=1)  # history items that had a content vector
    user_learn_hash = dy.String(nullable=False, min_length=1)  # of those vectors' ids: unchanged, not embedded again

    @dy.rule()
    def user_learn_interest_is_finite_and_unit_norm(cls) -> pl.Expr:
        return _finite_unit_norm("user_learn_interest")


# --- relevance: what a teacher says of pairs, and what its students make of it ------------------------------------


class RelevanceChains(dy.Schema):
    """One row per judged (query, item) on which the annotators agree: what the relevance teacher is trained on.

    Which annotators: metadata of the manifest. A pair is kept where most chains of every annotator say what people said
    and the annotators agree on the steps (ELLM-rele).
    """

    query_id = _key()
    item_id = _key()
    chain = dy.String(nullable=False, min_length=1)  # one line, as `embedders.relevance_prompts` writes it
    label = dy.Enum(["bad", "good"], nullable=False)  # what people said
    agreement = _probability()  # share of all chains that say so
    num_chains = dy.Int64(nullable=False, min=1)


class RelevanceAnswers(dy.Schema):
    """One row per (query, item) that the relevance teacher was asked about. Which teacher: the manifest's fingerprint.

    An answer that could not be read is no row here: it is in the quarantine, with the reason.
    """

    query_id = _key()
    item_id = _key()
    score = _probability(nullable=True)  # expected grade, 0 bad .. 1 good; null: rules know no certainty
    label = dy.Enum(["bad", "good"], nullable=False)
    category_match = dy.Enum(["match", "mismatch", "na"], nullable=True)  # null: only the label was asked for
    brand_match = dy.Enum(["match", "mismatch", "na"], nullable=True)
    model_match = dy.Enum(["match", "mismatch", "na"], nullable=True)
    attributes_match = dy.Enum(["match", "mismatch", "na"], nullable=True)
    chain = dy.String(nullable=True, min_length=1)  # of the majority; one line
    agreement = _probability()  # share of the readable chains that say `label`
    num_chains = dy.Int64(nullable=False, min=1)
    num_parsed = dy.Int64(nullable=False, min=1)
    num_attempts = dy.Int64(nullable=False, min=1)  # answers drawn, repeats of unreadable ones included
    num_tokens = _count()  # read and written for this pair when it was asked
    answer_hash = dy.String(nullable=False, min_length=1)  # its address in the cache: teacher, form and texts


class StudentCurves(dy.Schema):
    """One row per (student, epoch) of the distillation. The models: metadata of the manifest."""

    student = _key()  # interaction | representation
    epoch = dy.Int32(primary_key=True, min=0)
    train_loss = dy.Float64(nullable=False)
    validation_roc_auc = dy.Float64(nullable=True, min=0.0, max=1.0)  # null: no judged pairs to hold out
    seconds = dy.Float64(nullable=False, min=0.0)
    is_best = dy.Bool(nullable=False)


class RelevanceMetrics(dy.Schema):
    """One row per (scorer, part, metric): how well scores follow judgements of queries that nobody was trained on."""

    scorer = _key()  # word overlap | frozen encoder | teacher | interaction | representation
    part = _key()  # all | head | torso | tail: test queries by how often their rarest word occurs in training queries
    metric = _key()  # spearman | roc_auc | pr_auc_irrelevant | ndcg_at_10
    value = dy.Float64(nullable=True)
    low = dy.Float64(nullable=True)  # bootstrap over queries
    high = dy.Float64(nullable=True)
    num_pairs = _count()
    num_queries = _count()


class QueryItemRelevance(dy.Schema):
    """One row per (query, item, event_timestamp): the calibrated score of a student, for pairs seen or requested.

    Available from the midnight after the pair was first shown, never before the labels that taught the student.
    """

    query_id = _key()
    item_id = _key()
    event_timestamp = _time(primary_key=True)
    created_timestamp = _time()
    query_item_relevance = _probability()
    query_item_relevance_hash = dy.String(nullable=False, min_length=1)  # of both texts: unchanged, not scored again


class QueryEmbeddings(dy.Schema):
    """One row per (query, event_timestamp): its vector by the representation student.

    Probability that an item is relevant: sigmoid(scale * cosine + bias), with the item's vector of the same student.
    """

    query_id = _key()
    event_timestamp = _time(primary_key=True)
    created_timestamp = _time()
    query_relevance_vector_id = dy.Int64(nullable=False, min=0, unique=True)
    query_relevance_embedding = _vector()
    query_relevance_scale = dy.Float64(nullable=False)  # of the student, calibrated
    query_relevance_bias = dy.Float64(nullable=False)
    query_relevance_hash = dy.String(nullable=False, min_length=1)  # of the text: unchanged, not embedded again

    @dy.rule()
    def query_relevance_embedding_is_finite_and_unit_norm(cls) -> pl.Expr:
        return _finite_unit_norm("query_relevance_embedding")


class ItemRelevanceEmbeddings(dy.Schema):
    """One row per (item, event_timestamp): its vector by the representation student."""

    item_id = _key()
    event_timestamp = _time(primary_key=True)
    created_timestamp = _time()
    item_relevance_vector_id = dy.Int64(nullable=False, min=0, unique=True)
    item_relevance_embedding = _vector()
    item_relevance_hash = dy.String(nullable=False, min_length=1)  # of the text: unchanged, not embedded again

    @dy.rule()
    def item_relevance_embedding_is_finite_and_unit_norm(cls) -> pl.Expr:
        return _finite_unit_norm("item_relevance_embedding")


# --- from training set to report -----------------------------------------------------------------------------


class SplitWindows(dy.Schema):
    """One row per split: `start` <= event_timestamp < `end`. Labels of a split are known at `labels_as_of`."""

    split = dy.Enum(["train", "validation", "test"], primary_key=True)
    start = _time()
    end = _time()
    labels_as_of = _time()
    num_impressions = _count()


class TrainingExamples(dy.Schema):
    """One row per impression, with the features known at that moment. Feature columns follow the ones declared here.

    `converted` is null where the conversion window had not passed by the split's `labels_as_of`.
    """

    impression_id = _key()
    user_id = _id()
    item_id = _id()
    event_timestamp = _time()
    split = dy.Enum(["train", "validation", "test"], nullable=False)
    clicked = dy.Bool(nullable=False)
    converted = dy.Bool(nullable=True)
    is_sampled = dy.Bool(nullable=False)


class UserSegments(dy.Schema):
    """One row per user of the test split: tier by clicks in the 180 days before the test window (LEARN)."""

    user_id = _key()
    user_segment = dy.Enum(["cold_start", "long_tail", "others"], nullable=False)
    num_interactions = _count()


class ItemSegments(dy.Schema):
    """One row per item of the test split: tier by conversions (or clicks) in the 180 days before the test window."""

    item_id = _key()
    item_segment = dy.Enum(["cold_start", "long_tail", "others"], nullable=False)
    num_interactions = _count()


class ImpressionSegments(dy.Schema):
    """One row per impression of the test split. A String column for each kind of segment follows (null: in none).

    What is true of the user and the item is taken as of the start of the test window, never from the test itself.
    """

    impression_id = _key()


class Predictions(dy.Schema):
    """One row per impression: the label and a model's scores. All that evaluation reads, whoever made the model."""

    impression_id = _key()
    user_id = _id()
    item_id = _id()
    event_timestamp = _time()
    clicked = dy.Bool(nullable=False)
    converted = dy.Bool(nullable=True)
    p_ctr = _probability()
    p_cvr = _probability(nullable=True)
    p_ctcvr = _probability(nullable=True)
    user_segment = dy.String(nullable=True)
    item_segment = dy.String(nullable=True)


class RankerPredictions(Predictions):
    """One row per (ranker, seed, impression) of the test split."""

    ranker = _key()
    seed = dy.Int64(primary_key=True)


class ValidationPredictions(RankerPredictions):
    """One row per (ranker, seed, impression) of the validation split: what probabilities are recalibrated on."""


class TrainingCurves(dy.Schema):
    """One row per (ranker, seed, epoch)."""

    ranker = _key()
    seed = dy.Int64(primary_key=True)
    epoch = dy.Int32(primary_key=True, min=0)
    train_loss = dy.Float64(nullable=False)
    validation_loss = dy.Float64(nullable=False)
    validation_uauc = dy.Float64(nullable=True, min=0.0, max=1.0)
    seconds = dy.Float64(nullable=False, min=0.0)
    is_best = dy.Bool(nullable=False)


class SegmentMetrics(dy.Schema):
    """One row per (ranker, label, segment kind, segment, metric): value, interval, and gain over the baseline."""

    ranker = _key()
    label = _key()  # clicked | converted | clicked_and_converted
    segment_kind = _key()  # all | user_segment | item_segment | ...
    segment = _key()
    metric = _key()  # auc | uauc | wuauc
    value = dy.Float64(nullable=True, min=0.0, max=1.0)
    low = dy.Float64(nullable=True)
    high = dy.Float64(nullable=True)
    num_impressions = _count()
    num_positives = _count()
    num_users = _count()
    num_users_skipped = _count()  # uauc, wuauc: users whose impressions are all positive or all negative
    num_impressions_skipped = _count()  # of those users, out of num_impressions
    num_positives_skipped = _count()
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

    ranker = _key()
    label = _key()
    segment_kind = _key()
    segment = _key()
    method = _key()  # as scored | isotonic | platt; fitted on the validation split, judged on the test split
    num_impressions = _count()
    num_positives = _count()
    num_seeds = dy.Int64(nullable=False, min=1)  # every figure is the mean over them
    mean_predicted = _probability()
    observed_rate = _probability()
    predicted_over_observed = dy.Float64(nullable=True, min=0.0)  # null without positives
    log_loss = dy.Float64(nullable=False, min=0.0)  # nats per impression
    normalised_entropy = dy.Float64(nullable=True, min=0.0)  # null where one class is missing
    expected_calibration_error = _probability()


class FeatureGroupValues(dy.Schema):
    """One row per (ranker, feature group, method, segment kind, segment, metric): what the group is worth, on clicks.

    `value_lost` is the metric with the group minus the metric without it: positive where the group helps.
    """

    ranker = _key()
    feature_group = _key()
    method = _key()  # retrained: trained again without the group | permuted: its values shuffled within each user
    segment_kind = _key()
    segment = _key()
    metric = _key()  # uauc | wuauc
    value_with = dy.Float64(nullable=True, min=0.0, max=1.0)
    value_without = dy.Float64(nullable=True, min=0.0, max=1.0)
    value_lost = dy.Float64(nullable=True)
    low = dy.Float64(nullable=True)
    high = dy.Float64(nullable=True)
    p_value = dy.Float64(nullable=True, min=0.0, max=1.0)  # Holm-adjusted over the segments
    verdict = dy.String(nullable=True)  # helps | hurts | no difference | cannot tell
    num_users = _count()
    num_seeds = dy.Int64(nullable=False, min=1)


class FeatureGroupCosts(dy.Schema):
    """One row per (ranker, feature group): what having it costs."""

    ranker = _key()
    feature_group = _key()
    num_features = _count()
    seconds_to_make = dy.Float64(nullable=True, min=0.0)  # of the steps that make it, when they last ran; null: given
    num_bytes_online = dy.Int64(nullable=True, min=0)  # in the online store, all entities; null where not published
    rows_per_second_with = dy.Float64(nullable=True, min=0.0)  # scored by the ranker
    rows_per_second_without = dy.Float64(nullable=True, min=0.0)
