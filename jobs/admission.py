"""The door of the lake: which rows of a frame may enter a table, and which are refused, under which rule.

A frame whose *columns* are wrong (missing, or of a type that cannot be meant) is refused whole, with a
`TableError`. A frame whose *rows* are wrong is split: the good rows go in, each bad row is kept aside with the
names of the rules it broke, and the writer decides whether there are too many of them.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import dataframely as dy
import polars as pl

BROKEN_RULES = "broken_rules"
"""Column of a quarantine file: the rules that the row broke."""

NUM_SAMPLE_ROWS = 3


class TableError(ValueError):
    """A table is missing, or rows were offered to it that break its rules.

    The message names the table, the rule, how many rows, a few of them, where the rest lie and what to do.
    """

    def __init__(
        self,
        table: str,
        rule: str,
        remedy: str,
        *,
        count: int | None = None,
        total: int | None = None,
        sample: pl.DataFrame | None = None,
        quarantine: Path | None = None,
    ) -> None:
        self.table, self.rule, self.count, self.total, self.sample = table, rule, count, total, sample
        self.quarantine, self.remedy = quarantine, remedy
        message = f"{table}: {rule}"
        if count is not None:
            message += f" ({count:_}" + (f" of {total:_} rows)" if total is not None else " rows)")
        if sample is not None and not sample.is_empty():
            message += "".join(f"\n    {_short(row)}" for row in sample.head(NUM_SAMPLE_ROWS).iter_rows(named=True))
        if quarantine is not None:
            message += f"\n  refused rows: {quarantine}"
        super().__init__(f"{message}\n  what to do: {remedy}")


class Admission(NamedTuple):
    """A frame split at the door: `kept` rows as the schema wants them, `refused` rows with their `broken_rules`."""

    kept: pl.DataFrame
    refused: pl.DataFrame


def admit(
    table: str,
    schema: type[dy.Schema],
    frame: pl.DataFrame,
    *,
    rules: Mapping[str, pl.Expr] | None = None,
    keep_extra_columns: bool = False,
) -> Admission:
    """Split a frame into the rows that keep every rule of the schema and the rows that do not.

    Of several rows with the same primary key the first is kept and the others are refused.

    Args:
        table: the table's name, for messages.
        schema: the table's declaration.
        frame: any number of rows; more columns than declared are dropped unless `keep_extra_columns`.
        rules: further conditions (true = good), named; null counts as good, as in dataframely.
        keep_extra_columns: keep columns that the schema does not declare, behind the declared ones.

    Raises:
        TableError: a declared column is missing or has a type that cannot be cast without changing values.
    """
    declared = schema.column_names()
    extra = [name for name in frame.columns if name not in declared] if keep_extra_columns else []
    frame = _check_columns(table, schema, frame).select([*declared, *extra])
    broken: dict[str, pl.Expr] = {name: ~condition.fill_null(True) for name, condition in (rules or {}).items()}
    if key := schema.primary_key():
        broken["primary_key (a row with this key came before)"] = ~pl.struct(key).is_first_distinct()
    marked = frame.with_columns(
        pl.concat_list(
            [
                pl.when(condition).then(pl.lit(name)).otherwise(pl.lit(None, pl.String))
                for name, condition in broken.items()
            ]
            or [pl.lit(None, pl.String)]
        )
        .list.drop_nulls()
        .alias(BROKEN_RULES)
    )
    refused_here = marked.filter(pl.col(BROKEN_RULES).list.len() > 0)
    candidates = marked.filter(pl.col(BROKEN_RULES).list.len() == 0).drop(BROKEN_RULES)
    kept, failure = schema.filter(candidates.select(declared), cast=True)
    if len(failure) == 0:
        return Admission(kept.hstack(candidates.select(extra)) if extra else kept, refused_here)
    if extra:
        raise TableError(
            table,
            f"rule {', '.join(failure.counts())} broken",
            "this table is written by tailrank itself: please report this with the sample",
            count=len(failure),
            total=len(frame),
            sample=failure.invalid(),
        )
    details = failure.details()
    names = list(failure.counts())
    refused = details.select(
        *declared,
        pl.concat_list(
            [pl.when(pl.col(name) == "invalid").then(pl.lit(name)).otherwise(pl.lit(None, pl.String)) for name in names]
        )
        .list.drop_nulls()
        .alias(BROKEN_RULES),
    )
    return Admission(kept, pl.concat([refused_here, refused], how="vertical_relaxed"))


def most_broken_rules(refused: pl.DataFrame) -> list[tuple[str, int]]:
    """Rules by how many rows broke them, the most broken first."""
    counts = refused.get_column(BROKEN_RULES).explode().drop_nulls().value_counts(sort=True)
    return [(str(rule), int(count)) for rule, count in counts.iter_rows()]


def _check_columns(table: str, schema: type[dy.Schema], frame: pl.DataFrame) -> pl.DataFrame:
    missing = [name for name in schema.column_names() if name not in frame.columns]
    if missing:
        near = {name: difflib.get_close_matches(name, frame.columns, n=1) for name in missing}
        hints = "".join(f"; is {close[0]!r} meant to be {name!r}?" for name, close in near.items() if close)
        raise TableError(
            table,
            f"column {', '.join(missing)} missing (found: {', '.join(frame.columns)})",
            f"name or add the column in the source{hints}",
        )
    wanted = schema.create_empty().schema
    for name, want in wanted.items():
        have = frame.schema[name]
        if not _means_the_same(have, want):
            raise TableError(
                table,
                f"column {name} is {have}, expected {want}",
                f"cast the column in the source (its first value here: {frame.get_column(name).head(1).to_list()})",
                count=len(frame),
                total=len(frame),
            )
    return frame


def _means_the_same(have: pl.DataType, want: pl.DataType) -> bool:
    """True where a cast keeps what every value means, or turns a bad value into a counted failure."""
    if have == want or isinstance(have, pl.Null):
        return True
    if isinstance(want, pl.List) and isinstance(have, (pl.List, pl.Array)):
        inner_have, inner_want = have.inner, want.inner
        return _means_the_same(inner_have, inner_want)  # type: ignore[arg-type]
    if want.is_integer():
        return have.is_integer()
    if want.is_float():
        return have.is_numeric()
    if isinstance(want, pl.Datetime):
        return isinstance(have, pl.Datetime)
    if isinstance(want, (pl.String, pl.Enum)):
        return isinstance(have, (pl.String, pl.Enum, pl.Categorical)) or (
            isinstance(want, pl.String) and have.is_integer()
        )
    return False


def _short(row: dict[str, object]) -> str:
    def text(value: object) -> str:
        shown = str(value) if not isinstance(value, list) or len(value) <= 4 else f"[{len(value)} values]"
        return shown if len(shown) <= 60 else f"{shown[:57]}..."

    return ", ".join(f"{name}={text(value)}" for name, value in row.items() if value is not None)
