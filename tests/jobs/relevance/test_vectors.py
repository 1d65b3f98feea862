"""Vectors of one student only meet each other; what is read back is the newest of each query and item."""

import datetime as dt
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from embedders.fingerprint import Fingerprint
from feature_repo.table_schemas import ItemRelevanceEmbeddings, QueryEmbeddings, QueryItemRelevance
from jobs.lake import Lake
from jobs.relevance import pair_scores
from jobs.relevance.fitted_students import FittedStudent, check_one_student
from jobs.relevance.vectors import StoredVectors

START = dt.datetime(2025, 6, 1, tzinfo=dt.timezone.utc)
DAY = dt.timedelta(days=1)
STUDENT = Fingerprint("mkd_representation", "w", "t", "relevance_v1", "mean", 2, "l2", "float32", START.isoformat())


def write_vectors(lake: Lake, *, items_by: Fingerprint = STUDENT) -> None:
    """q0 along the first axis; i0 was along it, and is along the second from day 5 on; i1 is between them."""
    queries = pl.DataFrame(
        {
            "query_id": ["q0"],
            "event_timestamp": [START],
            "created_timestamp": [START],
            "query_relevance_vector_id": [0],
            "query_relevance_embedding": pl.Series([[1.0, 0.0]], dtype=pl.List(pl.Float32)),
            "query_relevance_scale": [4.0],
            "query_relevance_bias": [-1.0],
            "query_relevance_hash": ["q0"],
        }
    )
    lake.write(QueryEmbeddings, queries, fingerprint=STUDENT.as_tags())
    times = [START + 5 * DAY, START, START]
    items = pl.DataFrame(
        {
            "item_id": ["i0", "i0", "i1"],
            "event_timestamp": times,
            "created_timestamp": times,
            "item_relevance_vector_id": [2, 0, 1],
            "item_relevance_embedding": pl.Series([[0.0, 1.0], [1.0, 0.0], [0.6, 0.8]], dtype=pl.List(pl.Float32)),
            "item_relevance_hash": ["new", "old", "i1"],
        }
    )
    lake.write(ItemRelevanceEmbeddings, items, fingerprint=items_by.as_tags())


def test_cosines_are_of_the_newest_vectors(lake: Lake):
    write_vectors(lake)
    pairs = pl.DataFrame({"query_id": ["q0", "q0"], "item_id": ["i1", "i0"]})
    with tempfile.TemporaryFile() as of_queries, tempfile.TemporaryFile() as of_items:
        vectors = StoredVectors(lake, "test", (of_queries, of_items))
        np.testing.assert_allclose(vectors.cosines(pairs), [0.6, 0.0], atol=1e-7)


def test_vectors_of_two_students_never_meet_and_both_are_named(search_lake: Lake, tmp_path: Path):
    write_vectors(search_lake, items_by=replace(STUDENT, weights_sha256="another"))
    both = r"weights_sha256: expected w, found another"
    with pytest.raises(ValueError, match=both):
        check_one_student(search_lake, "test")
    with tempfile.TemporaryFile() as one, tempfile.TemporaryFile() as other, pytest.raises(ValueError, match=both):
        StoredVectors(search_lake, "test", (one, other))
    student = FittedStudent("representation", STUDENT, START, tmp_path, "", scale=4.0, bias=-1.0)
    with pytest.raises(ValueError, match=both):
        pair_scores.score_pairs(search_lake, student, most=10, requested=None)
    assert not search_lake.exists(QueryItemRelevance)
