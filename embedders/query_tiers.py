"""Head, torso and tail of the queries.

With a log, a query's frequency is how often it was asked. Judged data sets hold each query once and say nothing of
that; there we count how familiar its words are [NF->P]: the number of training queries that have its rarest word. A
query with a word that no training query has is of the tail, whatever else it says: misspellings, models, rare brands.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Tier = Literal["head", "torso", "tail"]
TIERS: tuple[Tier, ...] = ("head", "torso", "tail")
TIER_EDGES = (1, 5)
"""Below the first: tail; from the second on: head."""

_WORD = re.compile(r"[a-z0-9]+")


def words_of(text: str) -> list[str]:
    """Runs of letters and digits, in lower case."""
    return _WORD.findall(text.lower())


def rarest_word_frequency(queries: Sequence[str], training_queries: Sequence[str]) -> NDArray[np.int64]:
    """How many distinct training queries have the rarest word of each query; 0 for a query without words."""
    num_queries_of = Counter(word for query in set(training_queries) for word in set(words_of(query)))
    rarest = (min((num_queries_of[word] for word in words_of(query)), default=0) for query in queries)
    return np.fromiter(rarest, np.int64, count=len(queries))


def tiers_of(frequency_Q: NDArray[np.int64], edges: tuple[int, int] = TIER_EDGES) -> NDArray[np.str_]:
    """The tier of each frequency: tail below the first edge, head from the second on.

    Raises:
        ValueError: the edges do not ascend.
    """
    if not edges[0] < edges[1]:
        raise ValueError(f"the edges of the tiers must ascend, got {edges}")
    return np.array(["tail", "torso", "head"])[np.searchsorted(np.array(edges), frequency_Q, side="right")]
