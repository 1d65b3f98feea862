"""Charts: drawn from the numbers, safe with any name, told in words."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from ranker.calibration import Calibration, ReliabilityBin, ScoreHistogram
from ranker.calibration_charts import distribution, reliability
from ranker.forest_chart import fitting_limits, forest
from ranker.report_tables import ForestPoint

SERIES = {"base": 0, "content": 1, "learn": 2}


def point(row: str, ranker: str = "content", gain: float = 0.01, certain: bool = True) -> ForestPoint:
    return ForestPoint(row, ranker, gain, gain - 0.005, gain + 0.005, certain)


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" ', 1))


def markers(svg: str) -> list[tuple[float, float]]:
    """Where markers stand, from the left and from the top; ticks of the axes aside."""
    series = re.findall(r'<use [^>]*?x="([\d.]+)" y="([\d.]+)" style="[^"]*series', svg)
    return [(float(x), float(y)) for x, y in series]


def test_a_larger_gain_stands_further_right_and_a_later_row_further_down() -> None:
    drawn = markers(forest("f", "Gains", [point("a", gain=-0.01), point("b", gain=0.0), point("c", gain=0.03)], SERIES))
    assert len(drawn) == 3
    assert [x for x, _ in drawn] == sorted(x for x, _ in drawn)
    assert [y for _, y in drawn] == sorted(y for _, y in drawn)


def test_a_ranker_without_points_takes_no_room() -> None:
    def height(rankers: tuple[str, ...]) -> int:
        svg = forest("f", "Gains", [point("a", ranker) for ranker in rankers], SERIES)
        return int(parsed(svg).attrib["height"])

    assert height(("learn",)) == height(("content",)) < height(("content", "learn"))


def test_an_interval_that_cannot_tell_does_not_stretch_the_axis() -> None:
    assert fitting_limits([point("a"), point("b", gain=9.0, certain=False)]) == fitting_limits([point("a")])
    low, high = fitting_limits([point("a", gain=0.5)])
    assert low < 0.0 < 0.505 < high


@pytest.mark.parametrize("name", ["$5 to $10", "a_b^2 & <c>", 'say "hi"', "x" * 90, "\\frac{1}{2}", "%s {0}"])
def test_any_name_can_be_a_row_or_a_title(name: str) -> None:
    root = parsed(forest("f", name, [point(name)], SERIES))
    said = "".join(root.itertext())
    assert name[:10] in said
    assert name in root.attrib["aria-label"]


def test_a_small_chart_says_every_value_and_a_large_one_its_ends() -> None:
    small = parsed(forest("f", "Gains", [point("a"), point("b", gain=-0.02)], SERIES)).attrib["aria-label"]
    assert "a, content: +0.0100 (+0.0050 to +0.0150); b, content: −0.0200" in small
    large = parsed(forest("f", "Gains", [point(f"r{n}", gain=n / 100) for n in range(20)], SERIES)).attrib["aria-label"]
    assert "20 values with 95% interval, from r0, content: +0.0000" in large
    assert "up to r19, content: +0.1900" in large


def test_values_are_drawn_from_their_own_origin_and_written_without_a_sign() -> None:
    svg = forest("f", "ROC-AUC", [point("a", gain=0.7), point("b", gain=0.9)], SERIES, origin=0.5)
    assert "a, content: 0.7000 (0.6950 to 0.7050)" in parsed(svg).attrib["aria-label"]
    assert not re.search(r">[+−][\d.]+</text>", svg)
    low, high = fitting_limits([point("a", gain=0.7)], 0.5)
    assert 0.4 < low < 0.5 < 0.705 < high


def test_labels_keep_all_their_digits() -> None:
    svg = forest("f", "0.12345", [point("1.23456789")], SERIES)
    assert {"0.12345", "1.23456789"} <= set(re.findall(r">([^<>]+)</text>", svg))


def run(rate: float) -> Calibration:
    bins = tuple(ReliabilityBin(p, p * rate, 10) for p in (0.0, 0.001, 0.1, 0.9))
    return Calibration(40, 4, 0.1, 0.1, 1.0, 0.3, 0.9, 0.01, bins)


def test_a_reliability_chart_draws_a_line_for_each_seed_and_each_method() -> None:
    svg = reliability("r", "learn", [run(1.0), run(0.9)], {"isotonic": run(1.0), "platt": run(1.0)}, 2)
    thin = [style for style in re.findall(r'style="([^"]+)"', svg) if "var(--ink)" in style and "dasharray" in style]
    assert len(set(thin)) == len(thin) == 2
    assert len(markers(svg)) == 6  # three bins a seed: a prediction of zero has no place on a logarithmic axis
    assert "0.10% predicted, 0.10% observed" in parsed(svg).attrib["aria-label"]


def test_a_reliability_chart_without_a_drawable_bin_is_still_a_chart() -> None:
    nothing = Calibration(1, 0, 0.0, 0.0, None, 0.0, None, 0.0, (ReliabilityBin(0.0, 0.0, 1),))
    assert parsed(reliability("r", "learn", [nothing], {}, 2)).attrib["role"] == "img"


@pytest.mark.parametrize("is_logarithmic", [True, False])
def test_a_distribution_says_where_each_class_has_its_middle(is_logarithmic: bool) -> None:
    edges = np.geomspace(0.01, 0.16, 5) if is_logarithmic else np.linspace(-2.0, 2.0, 5)
    histogram = ScoreHistogram(edges, np.array([0, 0, 1, 9]), np.array([90, 10, 0, 0]), is_logarithmic)
    said = parsed(distribution("d", "learn", histogram, 1)).attrib["aria-label"]
    assert f"positives score above {edges[3]:.3g}, half of the negatives above {edges[0]:.3g}" in said


def test_a_distribution_of_one_class_is_still_a_chart() -> None:
    histogram = ScoreHistogram(np.linspace(0.0, 1.0, 5), np.zeros(4, np.int64), np.array([1, 2, 3, 4]), False)
    assert parsed(distribution("d", "learn", histogram, 1)).attrib["role"] == "img"
