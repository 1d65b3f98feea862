"""Who is whose positive: a batch small enough to decide by reading."""

import torch

from embedders.mkd_contrast import Contrasts, contrasts

GOOD, BAD, UNKNOWN = 1, 0, -1
MATCH, MISMATCH, NA = 0, 1, 2
FITS = [MATCH, MATCH, NA, MATCH]


def relations(rows: list[tuple[int, int, int, list[int]]], class_IC: list[list[int]], num_queries: int) -> list[str]:
    """One word a query: + positive, - negative, h hard negative, . neither."""
    query, item, good, match = (torch.tensor(part) for part in zip(*rows, strict=True))
    found: Contrasts = contrasts(query, item, good, match, torch.tensor(class_IC), num_queries)
    assert int((found.positive.int() + found.negative.int() + found.hard_negative.int()).max()) <= 1
    marks = found.positive.int() + 2 * found.negative.int() + 3 * found.hard_negative.int()
    return ["".join(".+-h"[int(mark)] for mark in row) for row in marks]


def test_good_fitting_items_are_positives_and_one_mismatch_makes_a_hard_negative() -> None:
    rows = [
        (0, 0, GOOD, FITS),
        (0, 1, BAD, [MATCH, MATCH, NA, MISMATCH]),
        (0, 2, BAD, [MISMATCH, MISMATCH, NA, MISMATCH]),
        (0, 3, BAD, [UNKNOWN] * 4),
    ]
    assert relations(rows, [[-1, -1]] * 4, 1) == ["+h--"]


def test_good_with_another_brand_is_neither_and_so_is_an_unknown_verdict() -> None:
    rows = [
        (0, 0, GOOD, FITS),
        (0, 1, GOOD, [MATCH, MISMATCH, NA, MATCH]),
        (0, 2, UNKNOWN, FITS),
        (0, 3, UNKNOWN, [MATCH, MATCH, NA, MISMATCH]),
        (0, 4, GOOD, [MATCH, MATCH, MISMATCH, MATCH]),
    ]
    assert relations(rows, [[-1, -1]] * 5, 1) == ["+..h+"]


def test_items_of_other_queries_are_negatives_but_for_those_of_the_same_category_and_brand() -> None:
    rows = [(0, 0, GOOD, FITS), (1, 1, GOOD, FITS), (1, 2, BAD, [MATCH, MISMATCH, NA, NA]), (1, 3, GOOD, FITS)]
    classes = [[5, 7], [5, 7], [5, 8], [5, -1]]
    assert relations(rows, classes, 2) == ["++--", "++h+"]


def test_what_the_teacher_judged_outweighs_the_classes() -> None:
    rows = [(0, 0, GOOD, FITS), (0, 1, BAD, [MATCH, MATCH, NA, MISMATCH])]
    assert relations(rows, [[5, 7], [5, 7]], 1) == ["+h"]


def test_without_classes_only_judged_items_are_positives() -> None:
    rows = [(0, 0, GOOD, FITS), (1, 1, GOOD, FITS)]
    query, item, good, match = (torch.tensor(part) for part in zip(*rows, strict=True))
    found = contrasts(query, item, good, match, torch.empty(2, 0, dtype=torch.int64), 2)
    assert found.positive.tolist() == [[True, False], [False, True]]
    assert found.weights(3.0).tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_hard_negatives_weigh_more() -> None:
    rows = [(0, 0, GOOD, FITS), (0, 1, BAD, [MATCH, MATCH, NA, MISMATCH]), (0, 2, BAD, [MISMATCH, MISMATCH, NA, NA])]
    query, item, good, match = (torch.tensor(part) for part in zip(*rows, strict=True))
    found = contrasts(query, item, good, match, torch.full((3, 2), -1), 1)
    assert found.weights(2.5).tolist() == [[0.0, 2.5, 1.0]]
