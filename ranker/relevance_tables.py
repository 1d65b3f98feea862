"""How well scores of (query, item) pairs follow people's judgements, as the report prints and draws it."""

from typing import Any

import dataframely as dy
import polars as pl

from feature_repo.table_schemas import RelevanceMetrics
from ranker.printed_table import NO_VALUE, Cell, Column, PrintedTable, Row, count, mark_repeats
from ranker.report_tables import ForestPoint

SCORERS = {
    "word overlap": "share of the query's words that the item's text has",
    "frozen encoder": "cosine of the two texts' vectors, by the encoder that students begin as, untrained",
    "teacher": "the answers that students learn from, here about pairs of test queries",
    "interaction": "student that reads query and item together",
    "representation": "student that makes a vector of each text, and scores a pair by their cosine",
}

METRIC_NAMES = {
    "spearman": "Spearman",
    "roc_auc": "ROC-AUC",
    "pr_auc_irrelevant": "PR-AUC, irrelevant",
    "ndcg_at_10": "NDCG@10",
}

OVERALL = "all"
"""The part that is every test query."""

FIGURES = tuple(Column(name) for name in METRIC_NAMES.values())

COLUMNS = (Column("Scorer", is_text=True), *FIGURES)

PART_COLUMNS = (
    Column("Part", is_text=True, is_said_once=True),
    Column("queries", is_said_once=True),
    Column("pairs", is_said_once=True),
    *COLUMNS,
)


def judged_on(metrics: dy.DataFrame[RelevanceMetrics]) -> str:
    """What all scorers are judged on, in a sentence."""
    row = metrics.filter(part=OVERALL).row(0, named=True)
    return (
        f"{row['num_pairs']:,} pairs that people judged, of {row['num_queries']:,} test queries, "
        "the same for every scorer. No student and no teacher learnt from those queries."
    )


def printed_overall(metrics: dy.DataFrame[RelevanceMetrics], about: str) -> PrintedTable:
    """A row per scorer, over all test queries."""
    rows = [Row((Cell(scorer), *cells)) for _, scorer, cells in _rows(metrics.filter(part=OVERALL))]
    return PrintedTable("relevance-all", "How well scores follow judgements", about, COLUMNS, tuple(rows))


def printed_by_part(metrics: dy.DataFrame[RelevanceMetrics], about: str) -> PrintedTable | None:
    """A row per (part, scorer); None where there is one part only."""
    if metrics["part"].n_unique() < 2:
        return None
    rows = [
        Row((Cell(size["part"]), count(size["num_queries"]), count(size["num_pairs"]), Cell(scorer), *cells))
        for size, scorer, cells in _rows(metrics)
    ]
    return PrintedTable(
        "relevance-parts",
        "Relevance by part of the test queries",
        about,
        PART_COLUMNS,
        mark_repeats(PART_COLUMNS, rows),
    )


def part_points(metrics: dy.DataFrame[RelevanceMetrics]) -> list[ForestPoint]:
    """ROC-AUC by part, its size beside its name; scorers are in the place of rankers."""
    return [
        ForestPoint(
            row=f"{row['part']}: {row['num_queries']:,} queries",
            ranker=row["scorer"],
            gain=row["value"],
            low=row["low"],
            high=row["high"],
            certain=True,
        )
        for row in metrics.filter(pl.col("low").is_not_null(), metric="roc_auc").iter_rows(named=True)
    ]


def _rows(metrics: pl.DataFrame) -> list[tuple[dict[str, Any], str, list[Cell]]]:
    """For each part and scorer: a row of it, the scorer's name, its figures."""
    rows = []
    for (_, scorer), several in metrics.group_by("part", "scorer", maintain_order=True):
        by_metric = {row["metric"]: row for row in several.iter_rows(named=True)}
        cells = [_figure(by_metric.get(metric)) for metric in METRIC_NAMES]
        rows.append((several.row(0, named=True), str(scorer), cells))
    return rows


def _figure(row: dict[str, Any] | None) -> Cell:
    if row is None or row["value"] is None:
        return Cell(NO_VALUE)
    interval = "" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
    return Cell(f"{row['value']:.3f}", row["value"], small=interval)
