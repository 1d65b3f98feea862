"""Maps of attention: the darker the larger, on one scale, small as text, told in words."""

import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest

from feature_repo.table_schemas import LearnAttention
from ranker.attention_charts import attention_maps, heat_maps


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" ', 1))


def inks(svg: str) -> list[float]:
    """Opacity of each shade that is drawn, in the order of the page."""
    return [float(found or 1) for found in re.findall(r'style="fill: var\(--ink\)(?:; opacity: ([\d.]+))?"', svg)]


def attention(*layers: list[list[float]], moment: str = "untouched") -> pl.DataFrame:
    """Rows from the column means of each head of each layer."""
    rows = [
        {"moment": moment, "layer": layer, "head": head, "top1_mass": max(means), "top4_mass": 1.0}
        | {"column_entropy": 0.5, "column_means": means}
        for layer, heads in enumerate(layers, 1)
        for head, means in enumerate(heads, 1)
    ]
    return LearnAttention.validate(pl.DataFrame(rows, schema=LearnAttention.create_empty().schema))


def test_more_attention_is_more_ink_and_none_is_none() -> None:
    key = inks(heat_maps("m", "Maps", "head", {"one": np.array([[0.0, 1.0]])}))
    assert max(key) == 1.0
    drawn = inks(heat_maps("m", "Maps", "head", {"one": np.array([[0.5, 0.25, 0.0]])}))
    more = [round(ink, 2) for ink in drawn]
    assert more[-2:] == [0.5, 1.0]  # on a scale to the largest; what is zero is not drawn
    faint = inks(heat_maps("m", "Maps", "position", {"one": np.array([[0.5, 0.125, 0.0]])}, is_faint=True))
    assert [round(ink, 2) for ink in faint[-2:]] == [0.5, 1.0]  # square roots


def test_two_maps_share_a_scale_and_stand_side_by_side() -> None:
    svg = heat_maps("m", "Maps", "head", {"untouched": np.full((2, 2), 0.2), "fitted": np.full((2, 2), 0.8)})
    said = "".join(parsed(svg).itertext())
    assert "untouched" in said
    assert "fitted" in said
    assert "0.80" in said
    assert [round(ink, 2) for ink in inks(svg)[-2:]] == [0.25, 1.0]


def test_a_chart_says_where_the_heaviest_share_is() -> None:
    shares = np.zeros((3, 4))
    shares[1, 2] = 0.6
    label = parsed(heat_maps("m", "Maps", "head", {"fitted": shares})).attrib["aria-label"]
    assert label == "Maps, by layer and head: fitted 0.050 on average, at most 0.600 in layer 2, head 3."


def test_maps_are_of_heads_and_of_positions_averaged_over_heads() -> None:
    one_sink = attention([[0.9, 0.1], [0.5, 0.5]], [[0.2, 0.8], [0.5, 0.5]])
    after = attention([[0.5, 0.5], [0.5, 0.5]], [[0.5, 0.5], [0.5, 0.5]], moment="fitted")
    heads, positions = attention_maps("learn", "LEARN", pl.concat([after, one_sink]))
    said = parsed(heads).attrib["aria-label"]
    assert "untouched 0.675 on average, at most 0.900 in layer 1, head 1; fitted 0.500 on average" in said
    # layer 1: (0.9 + 0.5) / 2 and (0.1 + 0.5) / 2; layer 2: 0.35 and 0.65
    assert "untouched 0.500 on average, at most 0.700 in layer 1, position 1" in parsed(positions).attrib["aria-label"]


@pytest.mark.parametrize("layers", [1, 2, 30, 48])
def test_a_map_of_any_depth_is_a_chart_of_its_own_height(layers: int) -> None:
    svg = heat_maps("m", "Maps", "head", {"one": np.random.default_rng(0).random((layers, 9))})
    assert 100 <= int(parsed(svg).attrib["height"]) <= 330
    assert int(parsed(svg).attrib["width"]) == 340


def test_a_large_map_stays_small_as_text() -> None:
    shares = np.random.default_rng(0).random((30, 48)) / 48
    assert len(heat_maps("m", "Maps", "position", {"a": shares, "b": shares}, is_faint=True)) < 300_000


def test_an_empty_table_gives_no_map_and_a_model_that_attends_to_nothing_still_gives_one() -> None:
    assert attention_maps("learn", "LEARN", LearnAttention.create_empty()) == []
    flat: Any = attention_maps("learn", "LEARN", attention([[0.0, 0.0]]))
    assert len(flat) == 2
