"""Words of titles, and how alike two titles are by them.

Words are runs of letters and digits in lower case, each counted once, whatever the language: a title written without
spaces is one word.
"""

import re

WORD = re.compile(r"[^\W_]+")


def title_words(title: str | None) -> frozenset[str]:
    """Its words; none of no title."""
    return frozenset(WORD.findall((title or "").lower()))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Shared words, as a share of all words of both; 0 where neither has any."""
    return len(one & other) / max(1, len(one | other))
