"""Training curves of embedding models: what was measured is drawn, what was not is left out."""

import re
from typing import Any
from xml.etree import ElementTree

import polars as pl
import pytest

from feature_repo.table_schemas import EmbedderCurves, KarmaCurves
from ranker.embedding_health_charts import Line, by_epoch, training_curves


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" ', 1))


def labels(charts: list[str]) -> list[str]:
    return [parsed(svg).attrib["aria-label"] for svg in charts]


def words(svg: str) -> list[str]:
    return re.findall(r">([^<>]+)</text>", svg)


def learn(**changes: Any) -> pl.DataFrame:
    rows = [
        {"method": "learn", "epoch": epoch, "train_loss": 4.0 - epoch, "validation_recall": 0.1 * epoch}
        | {"participation_ratio": 5.0, "effective_rank": 9.0, "uniformity": -2.0, "alignment": 1.0}
        | {"seconds": 1.0, "is_best": epoch == 1}
        | changes
        for epoch in range(3)
    ]
    return EmbedderCurves.validate(pl.DataFrame(rows, schema=EmbedderCurves.create_empty().schema))


def karma(epochs: int = 4) -> pl.DataFrame:
    rows = [
        {"epoch": epoch, "stage": "untouched" if epoch < 0 else "warm_up" if epoch == 0 else "joint"}
        | {"generation_loss": None if epoch < 0 else 3.0, "action_loss": None if epoch < 1 else 0.5 * epoch}
        | {"validation_recall": 0.1, "title_similarity": 0.05, "top1_mass": 0.4, "top4_mass": 0.6}
        | {"title_perplexity": 40.0, "seconds": 1.0, "is_best": epoch == 2}
        for epoch in range(-1, epochs)
    ]
    return KarmaCurves.validate(pl.DataFrame(rows, schema=KarmaCurves.create_empty().schema))


def test_learn_has_a_chart_of_loss_of_recall_and_of_both_counts_of_directions() -> None:
    assert labels(training_curves("LEARN", learn())) == [
        "LEARN: training loss by epoch: total 4 in epoch 0, 2 in epoch 2.",
        "LEARN: recall of held-out items by epoch: recall 0 in epoch 0, 0.2 in epoch 2.",
        "LEARN: user vectors by epoch: effective rank 9 in epoch 0, 9 in epoch 2; "
        "participation 5 in epoch 0, 5 in epoch 2.",
    ]


def test_what_nobody_was_held_out_for_is_not_drawn() -> None:
    nobody = learn(validation_recall=None, participation_ratio=None, effective_rank=None)
    assert len(training_curves("LEARN", nobody)) == 1


def test_a_table_older_than_its_columns_is_drawn_as_far_as_it_goes() -> None:
    older = learn().drop("participation_ratio", "effective_rank", "uniformity", "alignment")
    assert len(training_curves("LEARN", older)) == 2
    assert training_curves("LEARN", EmbedderCurves.create_empty()) == []


def test_karma_has_a_line_for_each_term_that_it_was_trained_with() -> None:
    charts = training_curves("KARMA", karma())
    losses = charts[0]
    assert {"action", "generation"} <= set(words(losses))
    assert not {"reconstruction", "image", "total"} & set(words(losses))
    assert "action 0.5 in epoch 1, 1.5 in epoch 3; generation 3 in epoch 0" in labels(charts)[0]
    assert len({parsed(svg).attrib["aria-label"] for svg in charts}) == len(charts) == 5


def test_the_model_before_training_stands_left_of_the_first_epoch_in_words() -> None:
    _, recall, *_ = training_curves("KARMA", karma())
    assert "before" in words(recall)
    assert "-1" not in words(recall)
    assert "recall 0.1 before training" in parsed(recall).attrib["aria-label"]
    assert "0" in words(recall)
    assert "0" not in words(training_curves("KARMA", karma(30))[1])  # no room beside the word


def test_a_new_stage_begins_at_a_dotted_line_and_training_itself_does_not() -> None:
    def dotted(stages: list[str]) -> int:
        svg = by_epoch("c", "Curve", "loss", [-1, 0, 1], [Line("loss", [3.0, 2.0, 1.0])], stages=stages)
        return len(re.findall(r"stroke-dasharray[^\"]*var\(--muted\)|var\(--muted\)[^\"]*stroke-dasharray", svg))

    assert dotted(["untouched", "warm_up", "joint"]) == 1
    assert dotted(["untouched", "joint", "joint"]) == 0


def test_perplexities_of_many_orders_are_drawn_by_ratio_under_readable_ticks() -> None:
    svg = by_epoch("c", "Titles", "perplexity", [-1, 0, 1], [Line("p", [6e10, 1e5, 800.0])], is_log=True)
    assert {"1,000", "100,000", "1e+07", "1e+09"} <= set(words(svg))
    narrow = by_epoch("c", "Titles", "perplexity", [-1, 0, 1], [Line("p", [26.0, 25.0, 24.0])], is_log=True)
    assert narrow == by_epoch("c", "Titles", "perplexity", [-1, 0, 1], [Line("p", [26.0, 25.0, 24.0])])
    assert "p 6e+10 before training, 800 in epoch 1" in parsed(svg).attrib["aria-label"]


def test_names_of_lines_that_end_together_do_not_cover_each_other() -> None:
    lines = [Line(name, [1.0, 1.0]) for name in ("one", "two", "three", "four")]
    svg = by_epoch("c", "Curve", "loss", [0, 1], lines)
    heights = [float(y) for y in re.findall(r'<text [^>]*y="([\d.]+)"[^>]*>(?:one|two|three|four)<', svg)]
    if not heights:  # matplotlib places some text by a transform
        heights = [float(y) for y in re.findall(r"translate\([\d.]+ ([\d.]+)\)[^>]*>(?:one|two|three|four)<", svg)]
    assert len(heights) == 4
    gaps = [abs(a - b) for a, b in zip(sorted(heights), sorted(heights)[1:], strict=False)]
    assert min(gaps) >= 9  # points; letters are 8 high


@pytest.mark.parametrize("value", [0.0, 5.0])
def test_a_single_epoch_is_a_chart(value: float) -> None:
    assert parsed(by_epoch("c", "Curve", "loss", [0], [Line("loss", [value])], kept=[0])).attrib["role"] == "img"
