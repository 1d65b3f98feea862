"""The sheet on which people audit a relevance teacher: a few of its answers, with every step, for a spreadsheet.

Half of the rows are pairs on which teacher and people disagree, where there are such; the rest is drawn from all other
answers by a hash, so the same answers give the same sheet.
"""

import csv
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import polars as pl

from embedders.relevance_prompts import STEPS, QueryItem, parse

NUM_ROWS = 200

HEADER = ("query", "title", "people", "verdict", "score", "agreement", *STEPS, "chain", "query_id", "item_id")

_FORMULA_SIGNS = ("=", "+", "-", "@")


def drawn(answers: pl.DataFrame, *, seed: int, num_rows: int = NUM_ROWS) -> pl.DataFrame:
    """The rows to audit: first those on which teacher and people disagree, at most half, then others.

    Args:
        answers: query_id, item_id, label (the teacher's), human_label (null: unjudged), and any other columns.
        seed: another one draws others.
        num_rows: at most; all where there are fewer.
    """
    keys = list(answers.select("query_id", "item_id").iter_rows())
    # two orders: where one were used twice, no disagreement that comes early would be left for the second draw
    orders = {draw: [_digest(seed, draw, *key) for key in keys] for draw in ("first", "second")}
    disagrees = (pl.col("label").cast(pl.String) != pl.col("human_label")).fill_null(False)
    marked = answers.with_columns(disagrees=disagrees, **{k: pl.Series(v, dtype=pl.Binary) for k, v in orders.items()})
    place = pl.col("disagrees").cum_sum()
    marked = marked.sort("first").with_columns(is_first=pl.col("disagrees") & (place <= num_rows // 2))
    first, others = marked.filter("is_first"), marked.filter(~pl.col("is_first")).sort("second")
    return pl.concat([first, others.head(num_rows - len(first))]).select(answers.columns)


def write_audit_sheet(path: Path, answers: pl.DataFrame, pairs: Sequence[QueryItem]) -> None:
    """Write the sheet as CSV, in UTF-8 with the mark by which spreadsheets know it.

    Args:
        path: where; a reader sees the old sheet or the new one.
        answers: query_id, item_id, human_label, and label, score, agreement, the steps and chain of `RelevanceAnswers`.
        pairs: what the teacher read, in their order.
    """
    aside = path.with_suffix(".tmp")
    with aside.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for row, pair in zip(answers.iter_rows(named=True), pairs, strict=True):
            chain = None if row["chain"] is None else parse(row["chain"])
            steps = [
                row[f"{step}_match"]
                if chain is None
                else f"{row[f'{step}_match']} ({getattr(chain.query, step) or '?'} / "
                f"{getattr(chain.item, step) or '?'})"
                for step in STEPS
            ]
            figures = [None if row[name] is None else f"{row[name]:.3f}" for name in ("score", "agreement")]
            cells = [pair.query, pair.title, row["human_label"], row["label"], *figures, *steps, row["chain"]]
            writer.writerow(cells_of_text([*cells, row["query_id"], row["item_id"]]))
    aside.replace(path)


def cells_of_text(values: Iterable[str | None]) -> list[str]:
    """Values as cells that no spreadsheet computes: one line each, and what would begin a formula begins with a '."""
    cells = [" ".join((value or "").split()) for value in values]
    return [f"'{cell}" if cell.startswith(_FORMULA_SIGNS) else cell for cell in cells]


def _digest(seed: int, draw: str, query_id: str, item_id: str) -> bytes:
    told = f"{seed}\n{draw}\n{len(query_id)}\n{query_id}\n{item_id}"
    return hashlib.blake2b(told.encode(), digest_size=16).digest()
