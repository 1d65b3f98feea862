"""Chains of reasoning from item attributes and human labels, where no large language model is at hand.

In ELLM-rele (arXiv 2411.13045) two large models write the chains on which the teacher is trained, and a chain is kept
when its verdict agrees with the human label. Here rules write them: ours, not the paper's [NF->P]. A step compares the
fact that the query names with what the item says of the same kind:

    match      the item says it
    mismatch   the item says something else of that kind
    na         the query names nothing, or the item says nothing of the kind

    verdict    bad where category, brand or model mismatch, else good

A human label is kept as it is. Where it contradicts the steps, only the category step gives way: to a person a good
item is a thing of the kind asked for, under whatever name, and a bad one that shares all the words is another thing.
"""

from embedders.relevance_prompts import Label, Match, QueryItem, Reasoning
from embedders.title_facts import Read, TitleReader, squashed

GOOD_FROM_GRADE = 2.33
"""Home Depot's mean grades of 1 to 3: two of three raters or more say that it is relevant."""

ROUNDING = 1e-5
"""A grade of 2.33 that was kept in float32 is 2.3299999."""


def label_of_grade(grade: float, good_from: float = GOOD_FROM_GRADE) -> Label:
    """A human grade as one of the two labels."""
    return "good" if grade >= good_from - ROUNDING else "bad"


def built_chain(pair: QueryItem, label: Label | None = None, *, reader: TitleReader | None = None) -> Reasoning:
    """A chain by rules.

    Args:
        pair: query and item.
        label: what people said; None: what the rules say, e.g. of an item with one attribute changed.
        reader: knows the brands of the catalogue. Learn it from items of the training split only.
    """
    reader = reader or TitleReader()
    query, item = reader.query(pair), reader.item(pair)
    category, brand = _category(query, item, pair), _brand(query, item, pair)
    model, attributes = _model(query, item), _attributes(query, item)
    by_rule: Label = "bad" if "mismatch" in (category, brand, model) else "good"
    if label is not None and label != by_rule:
        if label == "bad":
            category = "mismatch"
        elif category == "mismatch":
            category = "match"
    return Reasoning(
        query=query.facts(),
        item=item.facts(pair.category),
        category=category,
        brand=brand,
        model=model,
        attributes=attributes,
        label=label or by_rule,
    )


def _category(query: Read, item: Read, pair: QueryItem) -> Match:
    """By the last word of the query's category, which names the thing; a compound may be written in one word."""
    if not query.category:
        return "na"
    if not item.category:
        return "na"
    said = {*item.category, *TitleReader().query(QueryItem(pair.category or "", "")).category}
    if query.category[-1] in said:
        return "match"
    whole = squashed(" ".join(query.category))
    return "match" if whole and whole in squashed(" ".join(item.category)) else "mismatch"


def _brand(query: Read, item: Read, pair: QueryItem) -> Match:
    if not query.brand:
        return "na"
    if squashed(query.brand) in (squashed(item.brand), squashed(pair.brand or "")):
        return "match"
    if item.brand:
        return "mismatch"
    return "match" if squashed(query.brand) in squashed(pair.title) else "na"


def _model(query: Read, item: Read) -> Match:
    if not query.models or not item.models:
        return "na"
    return "match" if set(query.models) & set(item.models) else "mismatch"


def _attributes(query: Read, item: Read) -> Match:
    """One value that the item contradicts is a mismatch; what it does not speak of is passed over."""
    compared = [
        value in item.attributes[kind]
        for kind, values in query.attributes.items()
        for value in values
        if kind in item.attributes
    ]
    if not compared:
        return "na"
    return "match" if all(compared) else "mismatch"
