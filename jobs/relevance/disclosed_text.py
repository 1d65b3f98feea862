"""What of a query and an item a teacher may read: the fields allowed, without what tells of a person.

A query is what somebody typed, and people type e-mail addresses and phone numbers into search fields. Every text is
put on one line, then what looks like one of these is replaced by its name in brackets:

    [url]      an address with a scheme, with www., or with a path
    [e-mail]   name@host
    [card]     digits in the groups that are printed on cards: 4-4-4-4, 4-6-5
    [phone]    +.., (ddd) ddd-dddd, 1dd-dddd-dddd, or 8 and more digits in groups that begin with a zero
    [number]   9 digits or more in a row: a phone, a card, an account, an order

Rules know no names and no postal addresses. They err on the side of privacy: a bar code in a title is a [number], too.
"""

import html
import re
import unicodedata
from functools import lru_cache
from typing import Literal, get_args

from pydantic import BaseModel, field_validator

from embedders.relevance_prompts import QueryItem

Field = Literal["query", "title", "category", "brand", "attributes"]
FIELDS: tuple[Field, ...] = get_args(Field)

assert QueryItem._fields == FIELDS


class Disclosure(BaseModel, extra="forbid", frozen=True):
    """What may be read."""

    fields: tuple[Field, ...] = FIELDS
    """Allowed fields: `query`, and at least one of the item's."""
    redact: bool = True
    """Replace e-mail addresses, phone and card numbers, long numbers and URLs."""

    @field_validator("fields")
    @classmethod
    def _can_be_judged(cls, fields: tuple[Field, ...]) -> tuple[Field, ...]:
        if "query" not in fields or len(set(fields)) < 2:
            raise ValueError(f"nothing to judge: expected query and at least one of {', '.join(FIELDS[1:])}")
        return tuple(name for name in FIELDS if name in fields)


def disclosed(pair: QueryItem, disclosure: Disclosure) -> QueryItem:
    """The pair as a teacher may read it, each text on one line; doing it twice changes nothing more.

    A query or title that is not allowed is empty, any other field None.
    """
    return QueryItem(
        query=_shown(pair.query, "query", disclosure) or "",
        title=_shown(pair.title, "title", disclosure) or "",
        category=_shown(pair.category, "category", disclosure),
        brand=_shown(pair.brand, "brand", disclosure),
        attributes=_shown(pair.attributes, "attributes", disclosure),
    )


def _shown(text: str | None, name: Field, disclosure: Disclosure) -> str | None:
    if text is None or name not in disclosure.fields:
        return None
    line = " ".join(text.split())
    return (redacted(line) if disclosure.redact else line) or None


_SCHEME = r"\b(?:https?|ftps?|file)://\S+|\b(?:mailto|tel):\S+"
_WWW = r"(?<![\w@.-])www\.\S+"
_WITH_PATH = r"(?<![\w@.-])(?!(?:sq|cu)\.)(?:[a-z0-9-]+\.)+[a-z]{2,24}(?::\d+)?/[^\s/]\S*"
_PATTERNS = (
    ("[url]", re.compile(rf"{_SCHEME}|{_WWW}|{_WITH_PATH}", re.IGNORECASE)),
    ("[e-mail]", re.compile(r"[^\s@<>()\[\]\"',;:]+@[^\s@<>()\[\]\"',;:]+\.[^\s@<>()\[\]\"',;:.]{2,}")),
    ("[card]", re.compile(r"(?<!\d)\d{4}([ -])(?:\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|\d{6}\1\d{4,5})(?!\d)")),
    ("[phone]", re.compile(r"\+\(?\d(?:[\s().\-/]{0,2}\d){7,14}(?!\d)")),
    ("[phone]", re.compile(r"(?<!\d)(?:1[-. ])?(?:\(\d{3}\)[-. ]?|\d{3}[-./ ])\d{3}[-. ]\d{4}(?!\d)")),
    ("[phone]", re.compile(r"(?<!\d)1\d{2}[-. ]\d{4}[-. ]\d{4}(?!\d)")),
    ("[phone]", re.compile(r"(?<![\w.\-])(?=(?:[-./() ]{0,2}\d){8})\(?0\d{1,4}\)?(?:[-./ ]{1,2}\d{2,8}){1,5}(?!\d)")),
    ("[number]", re.compile(r"(?<!\d)(?<!\d\.)\d{9,}")),
)


@lru_cache(maxsize=65_536)  # a title comes with each of its pairs
def redacted(text: str) -> str:
    """One line without the parts that tell of a person; the text itself where there are none."""
    plain = _as_read(text)
    found = plain
    while (again := _without_one_layer(found)) != found:  # what stood around a part may now be one itself
        found = again
    return text if found == plain else found


def _without_one_layer(text: str) -> str:
    for name, pattern in _PATTERNS:
        text = pattern.sub(name, text)
    return _as_read(text)


def _as_read(text: str) -> str:
    """One line as a reader would see it: &#64; is an @, and a full-width digit a digit."""
    while (shown := " ".join(unicodedata.normalize("NFKC", html.unescape(text)).split())) != text:
        text = shown
    return text
