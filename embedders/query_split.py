"""Which queries train, validate and test: by a hash, so that it never depends on the file, its order or a seed.

Pairs of one query are judged by one idea of what it means; split by pair, a student would be tested on queries that it
was told the answers of.
"""

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Side = Literal["train", "validation", "test"]

TRAIN_BELOW, VALIDATION_BELOW = 70, 80
"""Of 100 buckets: 70 train, 10 validate, 20 test."""


def bucket_of(query: str) -> int:
    """0 to 99; queries that differ in case or blanks only are in one bucket."""
    text = " ".join(query.lower().split())
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) % 100


def side_of(query: str) -> Side:
    """The side that a query and all of its pairs are on."""
    bucket = bucket_of(query)
    return "train" if bucket < TRAIN_BELOW else "validation" if bucket < VALIDATION_BELOW else "test"


def sides_of(queries: Sequence[str]) -> NDArray[np.str_]:
    """The side of each query."""
    side = {query: side_of(query) for query in set(queries)}
    return np.array([side[query] for query in queries], dtype="U10")
