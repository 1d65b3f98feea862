"""The report: honest words, one self-contained page, the same page from the same numbers."""

import datetime as dt
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import polars as pl
import pytest

from feature_repo.table_schemas import SegmentMetrics, TrainingCurves
from ranker.calibration import calibrate_runs
from ranker.comparison import compare
from ranker.judged_runs import Run, line_up
from ranker.report import ReportData, Window, render
from ranker.report_json import report_json
from ranker.wording import segment_name, verdict

UTC = dt.timezone.utc
MAX_BYTES = 3_000_000


def world(num_users: int = 200, per_user: int = 12) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    n = num_users * per_user
    user = np.repeat(np.arange(num_users), per_user)
    logit = rng.normal(-1, 1.2, n)
    clicked = rng.random(n) < 1 / (1 + np.exp(-logit))
    return pl.DataFrame(
        {
            "impression_id": [f"i{i}" for i in range(n)],
            "user_id": [f"u{u}" for u in user],
            "clicked": clicked,
            "converted": clicked & (rng.random(n) < 0.4),
            "user_segment": np.where(user % 2 == 0, "cold_start", "others"),
            "item_segment": np.where(rng.random(n) < 0.02, "long_tail", "others"),
            "logit": logit,
        }
    )


def scored(frame: pl.DataFrame, noise: float, seed: int) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    p = 1 / (1 + np.exp(-(frame["logit"].to_numpy() + rng.normal(0, noise, frame.height))))
    return frame.drop("logit").with_columns(p_ctr=p, p_cvr=p, p_ctcvr=p * p)


def report(names: tuple[str, ...] = ("base", "content"), baseline: str | None = "base", **changes: Any) -> ReportData:
    frame = world()
    noise = {"base": 3.0, "content": 0.3, "ceiling": 0.0}
    judged = line_up([Run(name, seed, scored(frame, noise.get(name, 3.0), seed)) for name in names for seed in (1, 2)])
    curves = TrainingCurves.validate(
        pl.DataFrame(
            [
                {
                    "ranker": name,
                    "seed": seed,
                    "epoch": epoch,
                    "train_loss": 0.5 - 0.1 * epoch,
                    "validation_loss": 0.5 - 0.05 * epoch,
                    "validation_uauc": 0.6,
                    "seconds": 1.0,
                    "is_best": epoch == 2,
                }
                for name in names
                for seed in (1, 2)
                for epoch in range(3)
            ],
            schema_overrides={"epoch": pl.Int32},
        )
    )
    start = dt.datetime(2024, 1, 1, tzinfo=UTC)
    arguments: dict[str, Any] = {
        "title": "Do content features lift the tail?",
        "source": "Simulated marketplace, seed 7",
        "metrics": compare(judged, baseline=baseline, num_draws=200),
        "calibrations": calibrate_runs(judged),
        "created": dt.datetime(2024, 3, 1, tzinfo=UTC),
        "label_rule": "A click is a rating of 4 or more.",
        "curves": curves,
        "windows": [Window("test", start, start + dt.timedelta(days=7), start + dt.timedelta(days=9), 2400)],
        "provenance": {"Commit": "abc123", "Command": "tailrank run"},
        "configuration": '{"baseline": "base"}',
        "segment_rules": ("Users: 0 cold-start.",),
    }
    return ReportData(**(arguments | changes))


class Page(HTMLParser):
    """Collects what the tests ask about."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def html() -> str:
    return render(report(("base", "content", "ceiling")))


def test_the_page_asks_nothing_of_the_network(html: str) -> None:
    page = Page(html)
    assert page.all("script") == [{}]  # inside the page
    assert not page.all("img")
    assert [link["href"] for link in page.all("link")] == ["data:,"]
    assert not re.search(r"@import|url\((?!#)", html)
    addresses = set(re.findall(r'(?:href|src)="([^"#d][^"]*)"', html))
    assert not addresses
    assert len(html.encode()) < MAX_BYTES


def test_the_same_numbers_give_the_same_page() -> None:
    data = report()
    assert render(data) == render(data)


def test_every_table_has_a_caption_and_every_header_a_scope(html: str) -> None:
    page = Page(html)
    assert len(page.all("table")) == len(page.all("caption")) >= 5
    assert all(header.get("scope") in {"col", "colgroup", "row", "rowgroup"} for header in page.all("th"))


def test_every_chart_describes_itself_and_ids_are_unique(html: str) -> None:
    page = Page(html)
    charts = [svg for svg in page.all("svg") if svg.get("aria-hidden") != "true"]
    assert len(charts) >= 10
    assert all(svg["role"] == "img" and len(svg["aria-label"] or "") > 40 for svg in charts)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    labelled_by = {attrs["aria-labelledby"] for _, attrs in page.tags if "aria-labelledby" in attrs}
    assert labelled_by <= set(ids)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', html))
    assert used <= set(ids)


def test_charts_take_their_colours_from_the_page(html: str) -> None:
    svg = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))
    colours = set(re.findall(r"(?:fill|stroke): ?(#[0-9a-fA-F]+)", svg))
    assert not colours
    for variable in set(re.findall(r"var\((--[\w-]+)\)", html)):
        assert html.count(f"{variable}:") >= (1 if variable in ("--sans", "--serif") else 2)  # light and dark


def test_names_from_outside_cannot_break_the_page() -> None:
    page = render(report(("base", "<b>&amp;\"x'"), baseline="base", title="<script>alert(1)</script>"))
    assert page.count("<script>") == 1  # ours
    assert "<b>&amp;amp;" not in page
    assert Page(page).all("svg")


def test_the_page_says_what_labels_and_sampled_negatives_mean() -> None:
    page = render(report(num_sampled=1200))
    assert "A click is a rating of 4 or more." in page
    assert re.search(r"50\.0% of the impressions are sampled\s+negatives", page)
    assert "not comparable with those of logged impressions" in page
    assert "sampled\n" not in render(report())


def test_the_ceiling_is_in_the_tables_and_not_in_the_charts_or_the_verdict(html: str) -> None:
    assert len(re.findall(r'<tr[^>]* class="[^"]*ceiling"', html)) >= 3
    forests = re.findall(r'<svg[^>]*aria-label="Clicks: UAUC[^"]*"', html)
    assert forests
    assert "ceiling" not in forests[0]
    verdicts = re.findall(r'<p class="verdict">(.*?)</p>', html, flags=re.DOTALL)
    assert len(verdicts) == 1


def test_a_page_without_baseline_curves_or_conversions_is_whole() -> None:
    frame = scored(world(), 1.0, 0).select("impression_id", "user_id", "clicked", "p_ctr")
    judged = line_up([Run("mine", 0, frame)])
    data = ReportData(
        title="How well mine ranks",
        source="mine.parquet",
        metrics=compare(judged, baseline=None, num_draws=100),
        calibrations={},
        created=dt.datetime(2024, 3, 1, tzinfo=UTC),
    )
    page = render(data)
    assert "There is no baseline" in page
    assert "Gains over" not in page
    assert "Training" not in page
    assert "Conversions" not in page


def rows(*changes: dict[str, Any]) -> pl.DataFrame:
    row = {
        "ranker": "content",
        "label": "clicked",
        "segment_kind": "all",
        "segment": "all",
        "metric": "uauc",
        "value": 0.61,
        "low": 0.6,
        "high": 0.62,
        "num_impressions": 100,
        "num_positives": 10,
        "num_users": 9,
        "num_users_skipped": 1,
        "num_impressions_skipped": 25,
        "num_positives_skipped": 0,
        "num_seeds": 1,
        "seed_standard_deviation": None,
        "baseline": "base",
        "gain": 0.01,
        "gain_low": 0.004,
        "gain_high": 0.016,
        "p_value": 0.01,
        "verdict": "better",
    }
    schema = {name: column.dtype for name, column in SegmentMetrics.columns().items()}
    return SegmentMetrics.validate(pl.DataFrame([row | change for change in changes], schema=schema))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, r"Overall, content ranks better than base: its UAUC of clicks is 0.6100, a gain of \+0.0100"),
        ({"verdict": "worse", "gain": -0.01}, "Overall, content ranks worse than base: .* a gain of −0.0100"),
        ({"verdict": "no difference"}, "Overall, no difference was found between content and base"),
        ({"verdict": "cannot tell"}, "Whether content ranks better than base cannot be told from so little data"),
        ({"gain_low": None, "gain_high": None}, "cannot be told: too few users have both classes"),
        ({"value": None}, "nothing to say of content"),
        ({"baseline": None, "gain": None}, r"UAUC of clicks is 0.6100 .* over 9 users; 1 others, with 25%"),
    ],
)
def test_the_verdict_claims_no_more_than_the_table(change: dict[str, Any], sentence: str) -> None:
    assert re.search(sentence, verdict(rows(change), "content")[0])


def test_the_second_sentence_sorts_segments_by_what_was_found() -> None:
    sentences = verdict(
        rows(
            {},
            {"segment_kind": "user_segment", "segment": "cold_start", "gain": 0.05},
            {"segment_kind": "user_segment", "segment": "others", "verdict": "no difference"},
            {"segment_kind": "item_segment", "segment": "cold_start", "verdict": "cannot tell"},
            {"segment_kind": "item_segment", "segment": "others", "verdict": "worse", "gain": -0.02},
        ),
        "content",
    )
    assert sentences[1] == (
        "By segment, it is better for cold-start users (+0.0500); it is worse for other items (−0.0200); "
        "no difference was found for other users; there is too little to tell for cold-start items."
    )


def test_segments_are_called_what_a_reader_calls_them() -> None:
    assert segment_name("all", "all") == "all impressions"
    assert segment_name("user_segment", "long_tail") == "long-tail users"
    assert segment_name("item_segment", "others") == "other items"
    assert segment_name("item_category", "Tents") == "item category: Tents"


def test_json_has_the_overall_figures_of_clicks_first() -> None:
    data = report()
    content = report_json(data, "content")
    assert list(content)[:3] == ["auc", "uauc", "wuauc"]
    row = data.metrics.filter(ranker="content", label="clicked", segment_kind="all", metric="uauc").row(0, named=True)
    assert content["uauc"] == {key: row[key] for key in ("value", "low", "high")}
    assert content["labels"]["clicked"]["uauc"] == content["uauc"]
    assert set(content["labels"]) == {"clicked", "converted", "clicked_and_converted"}
    assert content["labels"]["clicked"]["calibration"]["log_loss"] > 0
    assert len(content["segments"]) == data.metrics.height
    assert {row["ranker"] for row in content["comparison"]} == {"content"}
    assert content["left_out"]["clicked"]["num_users"] == row["num_users_skipped"]
    assert content["provenance"]["windows"][0]["split"] == "test"


def test_json_without_a_baseline_compares_nothing() -> None:
    content = report_json(report(baseline=None), "content")
    assert content["comparison"] is None
    assert content["baseline"] is None


def test_a_segment_where_nobody_has_both_classes_is_counted_and_shown_without_a_value() -> None:
    frame = world().with_columns(
        shelf=pl.when(pl.col("impression_id") == "i0")
        .then(pl.lit("one impression"))
        .otherwise(pl.concat_str(pl.lit("shelf "), pl.int_range(pl.len()) % 12))
    )
    runs = [Run("base", 0, scored(frame, 3.0, 1)), Run("content", 0, scored(frame, 0.3, 2))]
    judged = line_up(runs, segment_kinds=["user_segment", "item_segment", "shelf"])
    metrics = compare(judged, baseline="base", num_draws=100)
    empty = metrics.filter(segment="one impression", metric="uauc", label="clicked", ranker="content").row(
        0, named=True
    )
    assert (empty["gain"], empty["verdict"], empty["num_users"]) == (None, "cannot tell", 0)
    assert re.search(r"of 13 further segments, .*too little to tell in \d+", " ".join(verdict(metrics, "content")))
    data = report(metrics=metrics)
    assert "one impression" in render(data)
    assert report_json(data, "content")["verdict"] == verdict(metrics, "content")
