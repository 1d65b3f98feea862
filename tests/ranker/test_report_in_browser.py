"""The report in a real browser: nothing fetched, nothing failing, sorted by mouse and keyboard, read in any light."""

import datetime as dt
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dataframely as dy
import numpy as np
import polars as pl
import pytest

from feature_repo import table_schemas as tables
from ranker.calibration import Calibration, ReliabilityBin, ScoreHistogram
from ranker.report import ReportData, Window, render

MAX_BYTES = 3_000_000
UTC = dt.timezone.utc
RANKERS = ("base", "gbdt_base", "content", "learn", "gbdt_learn")
LABELS = ("clicked", "converted", "clicked_and_converted")
TIERS = ("cold_start", "long_tail", "others")
KINDS = {
    "all": ("all",),
    "user_segment": TIERS,
    "item_segment": TIERS,
    "user_item_segment": tuple(f"{user} users x {item} items" for user in TIERS for item in TIERS),
    "category": (*(f"Home & Garden > Shelf no. {n}" for n in range(12)), "other"),
    "item_age": ("new in the test window", "under 7 days", "7 to 30 days", "31 to 180 days", "over 180 days"),
    "item_text": ("text", "no text"),
    "position": ("0", "1-3", "4-9", "10 and more"),
    "brand": (*(f"<$ {n}_brand>" for n in range(9)), "other"),
}
SEGMENTS = [(kind, segment) for kind, segments in KINDS.items() for segment in segments]
METHODS = ("as scored", "isotonic", "platt")


def frame(schema: type[dy.Schema], rows: list[dict[str, Any]]) -> Any:
    columns = {name: column.dtype for name, column in schema.columns().items()}
    return schema.validate(pl.DataFrame(rows, schema=columns))


def metrics(rng: np.random.Generator, rankers: Sequence[str]) -> Any:
    rows = []
    for label in LABELS:
        for place, (kind, segment) in enumerate(SEGMENTS):
            size = 400_000 // (1 + 7 * place)
            for ranker in rankers:
                for metric in ("uauc", "wuauc", "auc"):
                    value, gain = float(rng.uniform(0.55, 0.75)), float(rng.normal(0.01, 0.02))
                    compared = {
                        "baseline": "base",
                        "gain": gain,
                        "gain_low": gain - 0.013,
                        "gain_high": gain + 0.013,
                        "p_value": float(rng.random()),
                        "minimum_detectable": float(rng.uniform(0.01, 0.04)),
                        "verdict": str(rng.choice(["better", "worse", "no difference", "cannot tell"])),
                    }
                    rows.append(
                        {
                            "ranker": ranker,
                            "label": label,
                            "segment_kind": kind,
                            "segment": segment,
                            "metric": metric,
                            "value": value,
                            "low": value - 0.01,
                            "high": value + 0.01,
                            "num_impressions": size,
                            "num_positives": size // 9,
                            "num_users": size // 20,
                            "num_users_skipped": size // 50,
                            "num_impressions_skipped": size // 30,
                            "num_positives_skipped": size // 400,
                            "num_seeds": 3,
                            "seed_standard_deviation": 0.0012,
                            **(compared if ranker != "base" else {}),
                        }
                    )
    return frame(tables.SegmentMetrics, rows)


def calibration_metrics(rng: np.random.Generator, rankers: Sequence[str]) -> Any:
    return frame(
        tables.CalibrationMetrics,
        [
            {
                "ranker": ranker,
                "label": label,
                "segment_kind": kind,
                "segment": segment,
                "method": method,
                "num_impressions": 40_000,
                "num_positives": 4_000,
                "num_seeds": 3,
                "mean_predicted": float(rng.uniform(0.08, 0.12)),
                "observed_rate": 0.1,
                "predicted_over_observed": float(rng.uniform(0.8, 1.2)),
                "log_loss": float(rng.uniform(0.3, 0.33)),
                "normalised_entropy": float(rng.uniform(0.9, 1.0)),
                "expected_calibration_error": float(rng.uniform(0.0, 0.02)),
            }
            for label in LABELS
            for kind, segment in SEGMENTS
            for ranker in rankers
            for method in METHODS
        ],
    )


def calibration(rng: np.random.Generator) -> Calibration:
    p = np.geomspace(0.005, 0.5, 15)
    bins = tuple(ReliabilityBin(float(x), float(x * rng.uniform(0.8, 1.2)), 2000) for x in p)
    return Calibration(30_000, 3_000, 0.1, 0.1, 1.0, 0.31, 0.95, 0.004, bins)


def feature_groups(rng: np.random.Generator) -> tuple[Any, Any]:
    groups = ("content", "ids", "item_activity", "item_attributes", "learn", "user_activity", "user_history")
    values = [
        {
            "ranker": ranker,
            "feature_group": group,
            "method": method,
            "segment_kind": kind,
            "segment": segment,
            "metric": metric,
            "value_with": 0.66,
            "value_without": 0.66 - lost,
            "value_lost": lost,
            "low": lost - 0.01,
            "high": lost + 0.01,
            "p_value": 0.04,
            "verdict": "helps" if lost > 0.01 else "no difference",
            "num_users": 900,
            "num_seeds": 3,
        }
        for ranker in ("learn", "gbdt_learn")
        for group in groups
        for method in ("permuted", "retrained")
        for kind, segment in SEGMENTS[:7]
        for metric in ("uauc", "wuauc")
        for lost in (float(rng.normal(0.01, 0.01)),)
    ]
    costs = [
        {
            "ranker": ranker,
            "feature_group": group,
            "num_features": 7,
            "seconds_to_make": None if group == "ids" else 31.0,
            "num_bytes_online": None if group == "ids" else 1_234_567,
            "rows_per_second_with": 41_000.0,
            "rows_per_second_without": 44_000.0,
        }
        for ranker in ("learn", "gbdt_learn")
        for group in groups
    ]
    return frame(tables.FeatureGroupValues, values), frame(tables.FeatureGroupCosts, costs)


def curves() -> Any:
    rankers = [
        {"ranker": ranker, "seed": seed, "epoch": epoch, "train_loss": 0.5 / (1 + epoch) + 0.01 * seed}
        | {"validation_loss": 0.4 + 0.02 / (1 + epoch), "seconds": 1.0, "is_best": epoch == 7}
        for ranker in RANKERS
        for seed in range(3)
        for epoch in range(9)
    ]
    return frame(tables.TrainingCurves, rankers)


def embedder_curves() -> Any:
    return frame(
        tables.EmbedderCurves,
        [
            {"method": "learn", "epoch": epoch, "train_loss": 5.0 / (1 + epoch), "validation_recall": 0.05 * epoch}
            | {"participation_ratio": 11.0 + epoch, "effective_rank": 21.0 + epoch, "uniformity": -2.5}
            | {"alignment": 0.9, "seconds": 9.0, "is_best": epoch == 8}
            for epoch in range(9)
        ],
    )


def karma_curves() -> Any:
    """Before training, two epochs of warm-up, four of all losses but that of images."""
    return frame(
        tables.KarmaCurves,
        [
            {"epoch": epoch, "stage": "untouched" if epoch < 0 else "warm_up" if epoch < 2 else "joint"}
            | {"train_loss": None if epoch < 0 else 9.0 / (2 + epoch)}
            | {"action_loss": None if epoch < 2 else 3.0 / epoch}
            | {"generation_loss": None if epoch < 0 else 5.0 / (2 + epoch)}
            | {"reconstruction_loss": None if epoch < 2 else 5.5 / epoch}
            | {"validation_recall": 0.02 + 0.01 * epoch, "title_similarity": 0.06 + 0.002 * epoch}
            | {"participation_ratio": 9.0 + epoch, "effective_rank": 15.0 + 2 * epoch, "uniformity": -2.0}
            | {"alignment": 0.9, "top1_mass": 0.5 - 0.02 * epoch, "top4_mass": 0.7 - 0.02 * epoch}
            | {"column_entropy": 0.5, "share_of_sink_heads": 0.75, "title_perplexity": 41.0 + epoch}
            | {"seconds": 9.0, "is_best": epoch == 4}
            for epoch in range(-1, 6)
        ],
    )


def attention(schema: type[dy.Schema], layers: int, heads: int, rng: np.random.Generator) -> Any:
    """Most of the weight on the first of 48 positions, once trained on another four, too."""
    rows = []
    for moment in ("untouched", "fitted"):
        for layer in range(1, layers + 1):
            for head in range(1, heads + 1):
                means = rng.random(48) / 48
                means[0] += rng.random()
                if moment == "fitted":
                    means[[5, 6, 20, 33]] += 0.2 * layer / layers
                means /= means.sum()
                heaviest = np.sort(means)[::-1]
                rows.append(
                    {"moment": moment, "layer": layer, "head": head, "top1_mass": heaviest[0]}
                    | {"top4_mass": heaviest[:4].sum(), "column_entropy": 0.5, "column_means": means.tolist()}
                )
    return frame(schema, rows)


def relevance(rng: np.random.Generator) -> tuple[Any, Any]:
    metrics = [
        {"scorer": scorer, "part": part, "metric": metric, "value": value, "low": value - 0.04, "high": value + 0.04}
        | {"num_pairs": 12_345, "num_queries": 1_234}
        for part in ("all", "head", "torso", "tail")
        for scorer in ("word overlap", "frozen encoder", "teacher", "interaction", "representation")
        for metric in ("spearman", "roc_auc", "pr_auc_irrelevant", "ndcg_at_10")
        for value in (float(rng.uniform(0.6, 0.9)),)
    ]
    students = [
        {"student": student, "epoch": epoch, "train_loss": 3.0 / (1 + epoch), "validation_roc_auc": 0.8 + 0.03 * epoch}
        | {"seconds": 9.0, "is_best": epoch == 3}
        for student in ("interaction", "representation")
        for epoch in range(4)
    ]
    return frame(tables.RelevanceMetrics, metrics), frame(tables.StudentCurves, students)


def report(rankers: Sequence[str]) -> ReportData:
    """Rankers of 3 seeds, 50 segments, 3 labels, everything that a report can show."""
    assert len(SEGMENTS) == 50
    rng = np.random.default_rng(0)
    values, costs = feature_groups(rng)
    scorers, students = relevance(rng)
    runs = [(label, ranker) for label in LABELS for ranker in rankers]
    edges = np.geomspace(1e-4, 0.9, 41)
    counts = rng.integers(0, 4000, 40)
    start = dt.datetime(2026, 1, 1, tzinfo=UTC)
    return ReportData(
        title="Do content features lift the tail?",
        source="Made up",
        metrics=metrics(rng, rankers),
        calibrations={run: [calibration(rng) for _ in range(3)] for run in runs},
        created=start,
        label_rule="A click is a click.",
        segment_rules=[f"{kind}: as it says." for kind in KINDS],
        curves=curves(),
        windows=[Window("test", start, start + dt.timedelta(days=7), start + dt.timedelta(days=9), 400_000)],
        provenance={"Commit": "0123456789ab", "Command": "tailrank run evaluate_ranker " + "--set a.b=c " * 12},
        configuration="{\n" + '  "key": "a long line of configuration that goes on and on and on"\n' * 30 + "}",
        calibration_metrics=calibration_metrics(rng, rankers),
        recalibrations={(*run, method): [calibration(rng)] for run in runs for method in METHODS[1:]},
        histograms={run: ScoreHistogram(edges, counts, counts[::-1], is_logarithmic=True) for run in runs},
        embedder_curves=embedder_curves(),
        learn_attention=attention(tables.LearnAttention, 2, 4, rng),
        karma_curves=karma_curves(),
        karma_attention=attention(tables.KarmaAttention, 30, 9, rng),
        feature_group_values=values,
        feature_group_costs=costs,
        relevance_metrics=scorers,
        student_curves=students,
    )


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page with two rankers, which is quicker to open than one with five."""
    path: Path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render(report(("base", "gbdt_learn"))), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium on this machine: the report was not opened in a browser")
    sync_api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    arguments = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    arguments += ["--disable-component-update", "--disable-sync"]
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=program, args=arguments)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def wide(browser: Any, address: str) -> Iterator[Any]:
    """The page in a window of 1280 pixels, read only."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(address)
    yield page
    context.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page, to be clicked on."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(address)
    yield page
    context.close()


def column(page: Any, table: str, place: int) -> list[str]:
    """First line of each visible cell of a column."""
    script = "cells => cells.filter(cell => !cell.parentElement.hidden).map(cell => cell.innerText.split('\\n')[0])"
    found: list[str] = page.locator(f"#{table} tbody tr > :nth-child({place + 1})").evaluate_all(script)
    return found


def numbers(texts: list[str]) -> list[float]:
    return [float(re.sub(r"[^\d.+-]", "", text.replace("−", "-"))) for text in texts if re.search(r"\d", text)]


def test_a_large_report_stays_below_three_megabytes() -> None:
    assert len(render(report(RANKERS)).encode()) < MAX_BYTES


def test_the_browser_says_nothing_and_fetches_nothing(browser: Any, address: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.on("requestfailed", lambda request: said.append(f"failed: {request.url}"))
    page.goto(address)
    page.locator("#table-clicked thead button").first.click()
    page.wait_for_load_state("networkidle")
    context.close()
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [address]


@pytest.mark.parametrize(("key", "place"), [("click", 3), ("Enter", 4), (" ", 5)])
def test_a_column_sorts_by_mouse_and_by_keyboard(page: Any, key: str, place: int) -> None:
    head = page.locator(f'#table-clicked th[data-column="{place}"]')
    unsorted = column(page, "table-clicked", place)

    def press() -> None:
        if key == "click":
            head.locator("button").click()
        else:
            head.locator("button").focus()
            page.keyboard.press(key)

    press()
    assert head.get_attribute("aria-sort") == "descending"
    descending = column(page, "table-clicked", place)
    assert numbers(descending) == sorted(numbers(unsorted), reverse=True)
    assert sorted(descending) == sorted(unsorted)
    press()
    assert head.get_attribute("aria-sort") == "ascending"
    assert numbers(column(page, "table-clicked", place)) == sorted(numbers(unsorted))
    press()
    assert head.get_attribute("aria-sort") is None
    assert column(page, "table-clicked", place) == unsorted


def test_rows_without_a_value_come_last_in_either_direction(page: Any) -> None:
    for _ in range(2):
        page.locator('#table-clicked th[data-column="4"] button').click()
        gains = column(page, "table-clicked", 4)
        missing = [place for place, gain in enumerate(gains) if not gain.strip()]
        assert missing
        assert missing == list(range(len(gains) - len(missing), len(gains)))


def test_only_one_column_is_sorted_at_a_time_and_it_is_said(page: Any) -> None:
    for place in (2, 3, 0):
        page.locator(f'#table-clicked th[data-column="{place}"] button').click()
    sorted_heads = page.locator("#table-clicked th[aria-sort]")
    assert sorted_heads.count() == 1
    assert sorted_heads.first.get_attribute("aria-sort") == "ascending"
    assert page.locator("p.spoken[role=status]").inner_text() == "Sorted by Segment, ascending."


def test_a_sorted_row_names_its_segment_wherever_the_one_above_is_of_another(page: Any) -> None:
    page.locator('#table-clicked th[data-column="3"] button').click()
    script = """rows => rows.filter(row => !row.hidden).map(
        row => [row.cells[0].textContent.trim(), row.classList.contains("repeat")])"""
    rows = page.locator("#table-clicked tbody tr").evaluate_all(script)
    assert [repeat for _, repeat in rows] == [n > 0 and rows[n - 1][0] == row[0] for n, row in enumerate(rows)]


def test_rows_are_filtered_by_kind_of_segment_and_by_ranker(page: Any) -> None:
    tools = page.locator("#segments ~ .printed .tools")
    assert tools.locator("p").inner_text() == "14 of 100 rows"  # the tiers, and all impressions
    tools.locator("select").nth(0).select_option(label="Age of the item")
    tools.locator("select").nth(1).select_option(label="gbdt_learn")
    assert column(page, "table-clicked", 0)[:2] == ["all impressions", "items new in the test window"]
    assert set(column(page, "table-clicked", 2)) == {"gbdt_learn"}
    assert tools.locator("p").inner_text() == "6 of 100 rows"
    tools.locator("select").nth(0).select_option(index=0)
    tools.locator("select").nth(1).select_option(index=0)
    assert tools.locator("p").inner_text() == "100 rows"


CONTRAST = """() => {
  const channels = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const paper = element => {
    for (; element; element = element.parentElement) {
      const colour = channels(getComputedStyle(element).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = {};
  for (const element of document.querySelectorAll("body *:not(script, style)")) {
    if (![...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim())) continue;
    const style = getComputedStyle(element);
    const ink = element instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [light(channels(ink)), light(paper(element))].sort((x, y) => y - x);
    found[ink] = Math.min(found[ink] ?? 99, (a + 0.05) / (b + 0.05));
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_its_paper(page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    paper = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (min if scheme == "light" else max)(map(int, re.findall(r"\d+", paper))) in (
        range(240, 256) if scheme == "light" else range(40)
    )
    found = page.evaluate(CONTRAST)
    assert len(found) >= 4
    assert min(found.values()) >= 4.5, found


def test_the_page_never_scrolls_sideways(page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    for select in page.locator("select[data-filter=kind]").all():
        select.select_option(index=0)
    for width in (1280, 1264, 1100, 390):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_without_its_script_the_page_shows_every_row_of_every_table(browser: Any, address: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    shown = page.locator("table")
    assert shown.count() == 16
    assert all(table.is_visible() for table in shown.all())
    assert page.locator("#table-clicked tbody tr:visible").count() == 100
    assert page.locator(".tools:visible").count() == 0
    assert page.locator("th button").count() == 0
    context.close()


def test_every_link_leads_to_a_section(wide: Any) -> None:
    links = wide.locator("nav a")
    assert links.count() == 12
    targets = [link.get_attribute("href") for link in links.all()]
    assert all(wide.locator(f"h2{target}").is_visible() for target in targets)


def test_the_names_of_scorers_are_whole_on_a_phone(page: Any) -> None:
    page.set_viewport_size({"width": 380, "height": 800})
    assert column(page, "table-relevance-all", 0)[-1] == "representation"
    name = page.locator("#table-relevance-all tbody th").last
    select = "const text = document.createRange(); text.selectNodeContents(one)"
    assert name.evaluate(f"one => {{ {select}; return text.getClientRects().length; }}") == 1


@pytest.mark.parametrize("width", [1280, 380])
def test_charts_of_embedding_models_are_whole_and_in_rows_where_there_is_room(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    charts = page.locator("section[aria-labelledby=embeddings] .panel svg")
    boxes = [chart.bounding_box() for chart in charts.all()]
    assert len(boxes) == 3 + 2 + 6 + 2
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
    assert (boxes[0]["y"] == boxes[1]["y"]) == (width == 1280)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_sink_stands_out_from_what_is_hardly_looked_at(page: Any, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    cells = page.locator("svg[aria-label^='KARMA: attention by position'] path[style*='--ink']")
    ink = page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--ink')").strip()
    filled = cells.last.evaluate("one => getComputedStyle(one).fill")
    assert [int(n) for n in re.findall(r"\d+", filled)] == [int(ink[n : n + 2], 16) for n in (1, 3, 5)]
    shades = [float(cell.evaluate("one => getComputedStyle(one).opacity")) for cell in cells.all()]
    assert max(shades) == 1.0
    assert min(shades) <= 0.2


def test_header_cells_are_named_by_the_metric_above_them(wide: Any) -> None:
    names = [head.text_content() for head in wide.locator("#table-clicked th[data-column]").all()]
    assert names[:6] == ["Segment", "Share", "Ranker", "UAUC, value", "UAUC, gain", "UAUC, detectable"]
    assert len(set(names)) == len(names) == 12


def test_it_prints_every_table_uncut(page: Any, tmp_path: Path) -> None:
    pdf = page.pdf(path=tmp_path / "report.pdf", prefer_css_page_size=True)
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) > 3
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 687, "height": 1000})  # A4 within the margins
    landscape = 1031
    for table in page.locator("table").all():
        box, is_wide = table.bounding_box(), table.evaluate("one => one.closest('.wide') !== null")
        assert box is not None
        assert box["height"] > 0
        assert box["width"] <= (landscape if is_wide else 687), table.get_attribute("id")
    header = page.locator("#table-clicked th button").first
    assert header.evaluate("one => getComputedStyle(one).display") == "contents"  # or it is missing on the next page
    for details in page.locator("details").all():
        assert details.evaluate("one => one.lastElementChild.getBoundingClientRect().height") > 0
