"""UCI Online Retail II: two years of invoices of a UK gift shop (Chen, 2019; CC BY 4.0), its sheets as CSV or parquet.

    one sheet    Invoice, StockCode, Description, Quantity, InvoiceDate, Price, Customer ID
    the other    InvoiceNo, StockCode, Description, Quantity, InvoiceDate, UnitPrice, CustomerID

What we make of it
    impression   a product on an invoice (its lines added up): clicked, since it was bought. Where a line has lost its
                 invoice number, customer and minute stand for the invoice; where it has lost its stock code, the
                 column `StockCode_inferred` does where there is one, or else the description
    converted    kept: no cancellation of this product by this customer cancels the purchase within
                 `return_window_days`. Known, and dated, when the window ends; not known yet, so false, where the log
                 ends before. A cancellation cancels the latest purchase before it, in part or in whole
    negatives    sampled: `jobs.raw_sources.negative_sampling`
    item         title and price of its first sale, so that neither knows what came later; on sale from the Monday of
                 that week, the week from which it can be drawn as a negative
    time         the shop's wall clock, taken as UTC: a day is the shop's day

Rows that no rule above uses are left out, rule by rule, and counted (`LeftOut`).
"""

import tempfile
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import cast

import polars as pl
from pydantic import BaseModel, PositiveInt

from feature_repo.table_schemas import Impressions, Items
from jobs.raw_sources import LeftOut, Shard, negative_sampling
from jobs.raw_sources.tabular_files import PARQUET_SUFFIXES, folder_of, id_text, listing, scan_file

SPELLINGS = {
    "invoice": ("Invoice", "InvoiceNo"),
    "stock_code": ("StockCode",),
    "description": ("Description",),
    "quantity": ("Quantity",),
    "time": ("InvoiceDate",),
    "price": ("Price", "UnitPrice"),
    "customer": ("Customer ID", "CustomerID", "CustomerId"),
}
"""Our name of each column, and what the sheets call it."""

DATE_FORMATS = ("%Y-%m-%d %H:%M:%S", "%m/%d/%Y %H:%M", "%Y-%m-%dT%H:%M:%S%.f")
"""How exports of the sheets write times; month first, as the spreadsheet does."""

NOT_PRODUCTS = r"^(POST|DOT|C2|C3|D|M|S|B|ADJUST\d*|BANK CHARGES|AMAZONFEE|CRUK|PADS|TEST\d+|GIFT.*)$"
"""Stock codes of postage, carriage, manual entries, discounts, fees, samples, bad debt, tests and vouchers."""

NOT_PRODUCTS_BY_NAME = ("CRUK COMMISSION", "PACKING CHARGE", "HIGH RESOLUTION IMAGE", "POSTAGE", "MANUAL", "DISCOUNT")
"""The same, for lines that have lost their stock code."""


class Config(BaseModel, extra="forbid", frozen=True):
    """How the sheets are read and what counts as kept."""

    return_window_days: PositiveInt = 30
    """A purchase not cancelled for so many days is kept. Half of all cancellations come within 10 days, 3 in 4 within
    31. The conversion window of the training set must not be shorter."""
    negatives: negative_sampling.Config = negative_sampling.Config()
    """Negatives drawn for each purchase."""
    encoding: str = "utf-8"
    """Of CSV sheets; a common export is "latin-1"."""
    date_format: str | None = None
    """Of CSV sheets, where it is none of the usual ones."""


def label_rule(config: Config) -> str:
    """What `clicked` and `converted` stand for."""
    return (
        "clicked = bought (a product on an invoice); converted = kept: the customer cancelled no part of it within "
        f"{config.return_window_days} days, known only when they have passed; "
        + negative_sampling.label_rule(config.negatives)
    )


def raw_files(path: Path | None, config: Config) -> list[Path]:
    """The sheets."""
    return _sheet_files(folder_of("online_retail", path))


def shards(path: Path | None, config: Config) -> Iterator[Shard | LeftOut]:
    """Items, then purchases and their negatives in order of time.

    Raises:
        ValueError: the folder holds no sheet, a sheet lacks a column, or its times cannot be read.
    """
    folder = folder_of("online_retail", path)
    with tempfile.TemporaryDirectory() as workspace:
        sheets = [_sheet(file, config, Path(workspace)) for file in _sheet_files(folder)]
    lines, num_overlapping = _without_overlap(sorted(sheets, key=_first_time))
    yield LeftOut("line of a sheet from the time on at which the next sheet begins", num_overlapping)
    log_end = cast(datetime, lines.get_column("time").max())  # None only where there is no line to compare it with
    for rule, holds in _rules():
        kept = lines.filter(holds)
        yield LeftOut(rule, len(lines) - len(kept))
        lines = kept
    is_cancellation = (pl.col("quantity") < 0) | pl.col("invoice").str.starts_with("C").fill_null(False)
    sales, cancellations = lines.filter(~is_cancellation), lines.filter(is_cancellation)
    purchases = _purchases(sales)
    yield LeftOut("further line of a product on the same invoice", len(sales) - len(purchases))
    window = timedelta(days=config.return_window_days)
    purchases, num_unmatched = _mark_returned(purchases, cancellations, window)
    yield LeftOut("cancellation, which marks the purchase before it as returned", len(cancellations) - num_unmatched)
    yield LeftOut(f"cancellation without a purchase in the {window.days} days before", num_unmatched)
    yield Shard(Items, _items(purchases))
    purchases = purchases.sort("event_timestamp", "request_id", "item_id")
    for _, week in purchases.group_by(pl.col("event_timestamp").dt.truncate("1w").alias("week"), maintain_order=True):
        yield Shard(Impressions, _impressions(week, window, log_end))
        for negatives in negative_sampling.sample_negatives(week, config.negatives):
            yield Shard(Impressions, negatives)


def _sheet_files(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in (".csv", *PARQUET_SUFFIXES))
    if not files:
        raise ValueError(
            f"online_retail: no .csv or .parquet in {folder} (found: {listing(folder)}). "
            "Save each sheet of online_retail_II.xlsx as one CSV in this folder"
        )
    return files


def _sheet(file: Path, config: Config, workspace: Path) -> pl.DataFrame:
    """One sheet under our column names."""
    text_columns = [spelling for ours in ("invoice", "stock_code", "customer") for spelling in SPELLINGS[ours]]
    frame = scan_file(file, workspace=workspace, encoding=config.encoding, text_columns=text_columns)
    found = frame.collect_schema()
    named = {ours: next((name for name in names if name in found), None) for ours, names in SPELLINGS.items()}
    missing = [" or ".join(SPELLINGS[ours]) for ours, name in named.items() if name is None]
    if missing:
        raise ValueError(f"{file}: column {', '.join(missing)} missing (found: {', '.join(found.names())})")
    sheet = frame.select(
        *[pl.col(name).alias(ours) for ours, name in named.items() if name],
        (pl.col("StockCode_inferred") if "StockCode_inferred" in found else pl.lit(None, pl.String)).alias("inferred"),
    ).collect()
    description = pl.col("description").str.replace_all(r"\s+", " ").str.strip_chars().replace("", None)
    sheet = sheet.with_columns(
        id_text(pl.col("invoice"), sheet.schema["invoice"]),
        id_text(pl.col("customer"), sheet.schema["customer"]),
        description,
        pl.coalesce(pl.col("stock_code").cast(pl.String), "inferred").str.strip_chars().str.to_uppercase(),
        pl.col("quantity").cast(pl.Int64),
        pl.col("price").cast(pl.Float64),
        _time(sheet.schema["time"], config.date_format),
    ).drop("inferred")
    if unreadable := sheet.get_column("time").null_count():
        raise ValueError(
            f"{file}: {unreadable:_} of {len(sheet):_} values of {named['time']} are not times of the form "
            f"{config.date_format or ' or '.join(DATE_FORMATS)}; set date_format"
        )
    return sheet


def _time(dtype: pl.DataType, date_format: str | None) -> pl.Expr:
    if isinstance(dtype, pl.String):
        formats = DATE_FORMATS if date_format is None else (date_format,)
        return pl.coalesce(
            pl.col("time").str.to_datetime(form, time_unit="us", strict=False) for form in formats
        ).dt.replace_time_zone("UTC")
    return pl.col("time").cast(pl.Datetime("us")).dt.replace_time_zone("UTC")


def _first_time(sheet: pl.DataFrame) -> datetime:
    first = sheet.get_column("time").min()
    return first if isinstance(first, datetime) else datetime.max.replace(tzinfo=timezone.utc)


def _without_overlap(sheets: list[pl.DataFrame]) -> tuple[pl.DataFrame, int]:
    """The sheets as one, in order of time: where one begins, the one before it ends."""
    ends = [_first_time(sheet) for sheet in sheets[1:]]
    cut = [sheet.filter(pl.col("time") < end) for sheet, end in zip(sheets, ends, strict=False)]
    lines = pl.concat([*cut, sheets[-1]])
    return lines, sum(map(len, sheets)) - len(lines)


def _rules() -> list[tuple[str, pl.Expr]]:
    """What a line must be to count, in this order; the name says what is left out."""
    is_product = ~pl.col("stock_code").str.contains(NOT_PRODUCTS).fill_null(False) & ~(
        pl.col("stock_code").is_null() & pl.col("description").str.to_uppercase().is_in(NOT_PRODUCTS_BY_NAME)
    ).fill_null(False)
    return [
        ("line without a customer", pl.col("customer").is_not_null()),
        ("line that is not of a product (postage, fees, manual entries, ...)", is_product),
        (
            "line without a stock code and a description",
            pl.any_horizontal(pl.col("stock_code", "description").is_not_null()),
        ),
        ("line without a price above zero", (pl.col("price") > 0).fill_null(False)),
        ("line without a quantity", (pl.col("quantity") != 0).fill_null(False)),
    ]


def _keyed(lines: pl.DataFrame) -> pl.DataFrame:
    """Lines with the columns request_id, user_id and item_id."""
    minute = pl.col("time").dt.strftime("%Y-%m-%dT%H:%M")
    return lines.with_columns(
        request_id=pl.coalesce("invoice", pl.format("{}@{}", "customer", minute)),
        user_id=pl.col("customer"),
        item_id=pl.coalesce("stock_code", pl.col("description").str.to_uppercase()),
    )


def _purchases(sales: pl.DataFrame) -> pl.DataFrame:
    """One row per product on an invoice: its first line's text and price, the invoice's time and first customer."""
    return (
        _keyed(sales)
        .with_columns(
            pl.col("time").min().over("request_id").alias("event_timestamp"),
            pl.col("user_id").first().over("request_id"),
        )
        .group_by("request_id", "item_id", maintain_order=True)
        .agg(pl.col("user_id", "event_timestamp", "description", "price").first())
    )


def _mark_returned(purchases: pl.DataFrame, cancellations: pl.DataFrame, window: timedelta) -> tuple[pl.DataFrame, int]:
    """Purchases with the column `is_returned`, and how many cancellations found no purchase."""
    matched = (
        _keyed(cancellations)
        .select("user_id", "item_id", "time")
        .sort("time")
        .join_asof(
            purchases.sort("event_timestamp").select("user_id", "item_id", "event_timestamp", "request_id"),
            left_on="time",
            right_on="event_timestamp",
            by=["user_id", "item_id"],
            strategy="backward",
            tolerance=window,
            check_sortedness=False,  # cannot be checked within groups; both sides are sorted above
        )
    )
    returned = matched.select("request_id", "item_id").drop_nulls().unique().with_columns(is_returned=pl.lit(True))
    marked = purchases.join(returned, on=["request_id", "item_id"], how="left", maintain_order="left")
    return marked.with_columns(pl.col("is_returned").fill_null(False)), matched.get_column("request_id").null_count()


def _items(purchases: pl.DataFrame) -> pl.DataFrame:
    return (
        purchases.sort("event_timestamp", maintain_order=True)
        .group_by("item_id", maintain_order=True)
        .agg(
            pl.col("description").drop_nulls().first().alias("title"),
            (pl.col("price").first() * 100).round().cast(pl.Int64).alias("price_cents"),
            pl.col("event_timestamp").first().dt.truncate("1w"),
        )
    )


def _impressions(purchases: pl.DataFrame, window: timedelta, log_end: datetime) -> pl.DataFrame:
    known_at = pl.col("event_timestamp") + window
    kept = ~pl.col("is_returned") & (known_at <= log_end)
    return purchases.select(
        "request_id",
        "user_id",
        "item_id",
        "event_timestamp",
        impression_id=pl.format("{}:{}", "request_id", "item_id"),
        clicked=pl.lit(True),
        converted=kept,
        conversion_timestamp=pl.when(kept).then(known_at),
        is_sampled=pl.lit(False),
    )
