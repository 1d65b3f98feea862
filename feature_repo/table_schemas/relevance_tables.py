"""Relevance: what a teacher says of pairs, and what its students make of it."""

import dataframely as dy
import polars as pl

from feature_repo.table_schemas.columns import count, finite_unit_norm, key, probability, time, vector


class RelevanceChains(dy.Schema):
    """One row per judged (query, item) on which the annotators agree: what the relevance teacher is trained on.

    Which annotators: metadata of the manifest. A pair is kept where most chains of every annotator say what people said
    and the annotators agree on the steps (ELLM-rele).
    """

    query_id = key()
    item_id = key()
    chain = dy.String(nullable=False, min_length=1)  # one line, as `embedders.relevance_prompts` writes it
    label = dy.Enum(["bad", "good"], nullable=False)  # what people said
    agreement = probability()  # share of all chains that say so
    num_chains = dy.Int64(nullable=False, min=1)


class RelevanceAnswers(dy.Schema):
    """One row per (query, item) that the relevance teacher was asked about. Which teacher: the manifest's fingerprint.

    An answer that could not be read is no row here: it is in the quarantine, with the reason.
    """

    query_id = key()
    item_id = key()
    score = probability(nullable=True)  # expected grade, 0 bad .. 1 good; null: rules know no certainty
    label = dy.Enum(["bad", "good"], nullable=False)
    category_match = dy.Enum(["match", "mismatch", "na"], nullable=True)  # null: only the label was asked for
    brand_match = dy.Enum(["match", "mismatch", "na"], nullable=True)
    model_match = dy.Enum(["match", "mismatch", "na"], nullable=True)
    attributes_match = dy.Enum(["match", "mismatch", "na"], nullable=True)
    chain = dy.String(nullable=True, min_length=1)  # of the majority; one line
    agreement = probability()  # share of the readable chains that say `label`
    num_chains = dy.Int64(nullable=False, min=1)
    num_parsed = dy.Int64(nullable=False, min=1)
    num_attempts = dy.Int64(nullable=False, min=1)  # answers drawn, repeats of unreadable ones included
    num_tokens = count()  # read and written for this pair when it was asked
    answer_hash = dy.String(nullable=False, min_length=1)  # its address in the cache: teacher, form and texts


class StudentCurves(dy.Schema):
    """One row per (student, epoch) of the distillation. The models: metadata of the manifest."""

    student = key()  # interaction | representation
    epoch = dy.Int32(primary_key=True, min=0)
    train_loss = dy.Float64(nullable=False)
    validation_roc_auc = dy.Float64(nullable=True, min=0.0, max=1.0)  # null: no judged pairs to hold out
    seconds = dy.Float64(nullable=False, min=0.0)
    is_best = dy.Bool(nullable=False)


class RelevanceMetrics(dy.Schema):
    """One row per (scorer, part, metric): how well scores follow judgements of queries that nobody was trained on."""

    scorer = key()  # word overlap | frozen encoder | teacher | interaction | representation
    part = key()  # all | head | torso | tail: test queries by how often their rarest word occurs in training queries
    metric = key()  # spearman | roc_auc | pr_auc_irrelevant | ndcg_at_10
    value = dy.Float64(nullable=True)
    low = dy.Float64(nullable=True)  # bootstrap over queries
    high = dy.Float64(nullable=True)
    num_pairs = count()
    num_queries = count()


class QueryItemRelevance(dy.Schema):
    """One row per (query, item, event_timestamp): the calibrated score of a student, for pairs seen or requested.

    Available from the midnight after the pair was first shown, never before the labels that taught the student.
    """

    query_id = key()
    item_id = key()
    event_timestamp = time(primary_key=True)
    created_timestamp = time()
    query_item_relevance = probability()
    query_item_relevance_hash = dy.String(nullable=False, min_length=1)  # of both texts: unchanged, not scored again


class QueryEmbeddings(dy.Schema):
    """One row per (query, event_timestamp): its vector by the representation student.

    Probability that an item is relevant: sigmoid(scale * cosine + bias), with the item's vector of the same student.
    """

    query_id = key()
    event_timestamp = time(primary_key=True)
    created_timestamp = time()
    query_relevance_vector_id = dy.Int64(nullable=False, min=0, unique=True)
    query_relevance_embedding = vector()
    query_relevance_scale = dy.Float64(nullable=False)  # of the student, calibrated
    query_relevance_bias = dy.Float64(nullable=False)
    query_relevance_hash = dy.String(nullable=False, min_length=1)  # of the text: unchanged, not embedded again

    @dy.rule()
    def query_relevance_embedding_is_finite_and_unit_norm(cls) -> pl.Expr:
        return finite_unit_norm("query_relevance_embedding")


class ItemRelevanceEmbeddings(dy.Schema):
    """One row per (item, event_timestamp): its vector by the representation student."""

    item_id = key()
    event_timestamp = time(primary_key=True)
    created_timestamp = time()
    item_relevance_vector_id = dy.Int64(nullable=False, min=0, unique=True)
    item_relevance_embedding = vector()
    item_relevance_hash = dy.String(nullable=False, min_length=1)  # of the text: unchanged, not embedded again

    @dy.rule()
    def item_relevance_embedding_is_finite_and_unit_norm(cls) -> pl.Expr:
        return finite_unit_norm("item_relevance_embedding")
