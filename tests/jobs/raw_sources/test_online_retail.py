import datetime as dt
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest

from feature_repo.table_schemas import Impressions, Items
from jobs.raw_sources import LeftOut, Shard, negative_sampling
from jobs.raw_sources.online_retail import Config, label_rule, shards

EARLIER = ["Invoice", "StockCode", "Description", "Quantity", "InvoiceDate", "Price", "Customer ID", "Country"]
LATER = ["InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country"]

Line = tuple[str | None, str | None, str | None, int, dt.datetime, float, int | None]

START = dt.datetime(2010, 3, 3, 9, 30)


def at(days: float) -> dt.datetime:
    return START + dt.timedelta(days=days)


def utc(days: float) -> dt.datetime:
    return at(days).replace(tzinfo=dt.timezone.utc)


def line(invoice: str | None, code: str | None, days: float, customer: int | None = 1, **more: object) -> Line:
    text = more.get("description", f"NAME OF {code}")
    quantity, price = more.get("quantity", 1), more.get("price", 2.5)
    return (invoice, code, text, quantity, at(days), price, customer)  # type: ignore[return-value]


END = line("999999", "99999", 200, customer=99)
"""A last sale, long after the others, so that their return windows have passed."""


def write_sheet(path: Path, lines: Sequence[Line], columns: Sequence[str] = EARLIER) -> None:
    frame = pl.DataFrame([(*row, "United Kingdom") for row in lines], schema=list(columns), orient="row")
    frame.write_csv(path) if path.suffix == ".csv" else frame.write_parquet(path)


class Log:
    """What the adapter makes of a folder."""

    def __init__(self, folder: Path, config: Config = Config()) -> None:  # noqa: B008 (immutable)
        pieces = list(shards(folder, config))
        frames = [piece.frame for piece in pieces if isinstance(piece, Shard) and piece.schema is Impressions]
        self.impressions = pl.concat(frames, how="diagonal")
        self.purchases = self.impressions.filter("clicked").sort("event_timestamp", "impression_id")
        self.items = pl.concat(
            [piece.frame for piece in pieces if isinstance(piece, Shard) and piece.schema is Items]
        ).sort("item_id")
        self.left_out = {
            piece.rule: piece.num_rows for piece in pieces if isinstance(piece, LeftOut) and piece.num_rows
        }

    @property
    def kept(self) -> dict[str, bool]:
        return dict(self.purchases.select("impression_id", "converted").iter_rows())


def test_an_invoice_line_is_a_click_in_the_request_of_its_invoice(tmp_path: Path):
    write_sheet(tmp_path / "a.parquet", [line("489434", "85048", 0), line("489434", "79323p", 0), END])
    purchases = Log(tmp_path).purchases
    assert purchases.get_column("impression_id").to_list() == ["489434:79323P", "489434:85048", "999999:99999"]
    assert purchases.get_column("request_id").to_list() == ["489434", "489434", "999999"]
    assert purchases.get_column("user_id").to_list() == ["1", "1", "99"]
    assert purchases.get_column("event_timestamp")[0] == utc(0)


def test_both_spellings_of_the_columns_and_csv_as_well_as_parquet_are_read(tmp_path: Path):
    write_sheet(tmp_path / "a.parquet", [line("1", "85048", 0)])
    write_sheet(tmp_path / "b.csv", [line("2", "85048", 1), END], LATER)
    assert Log(tmp_path).purchases.get_column("request_id").to_list() == ["1", "2", "999999"]


def test_a_sheet_ends_where_the_next_one_begins(tmp_path: Path):
    write_sheet(tmp_path / "late.parquet", [line("2", "85048", 5), END], LATER)
    write_sheet(tmp_path / "early.parquet", [line("1", "85048", 0), line("2", "85048", 5), line("3", "85048", 6)])
    log = Log(tmp_path)
    assert log.purchases.get_column("request_id").to_list() == ["1", "2", "999999"]
    assert log.left_out == {"line of a sheet from the time on at which the next sheet begins": 2}


def test_what_is_not_a_purchase_of_a_product_by_a_customer_is_left_out_and_counted(tmp_path: Path):
    lines = [
        line("1", "85048", 0),
        line("2", "85048", 0, customer=None),
        line("3", "POST", 0),
        line("3", "m", 0),
        line("3", "BANK CHARGES", 0),
        line("3", "gift_0001_30", 0),
        line(None, None, 0, description="CRUK Commission"),
        line(None, None, 0, description=None),
        line("4", "85048", 0, price=0.0),
        line("5", "85048", 0, quantity=0),
        END,
    ]
    write_sheet(tmp_path / "a.parquet", lines)
    log = Log(tmp_path)
    assert list(log.left_out.values()) == [1, 5, 1, 1, 1]
    assert len(log.purchases) + sum(log.left_out.values()) == len(lines)


def test_two_lines_of_a_product_on_an_invoice_are_one_impression(tmp_path: Path):
    write_sheet(tmp_path / "a.parquet", [line("1", "85048", 0), line("1", "85048", 0, quantity=5), END])
    log = Log(tmp_path)
    assert log.purchases.get_column("impression_id").to_list() == ["1:85048", "999999:99999"]
    assert log.left_out == {"further line of a product on the same invoice": 1}


def test_a_line_that_lost_its_invoice_and_code_is_told_by_customer_minute_and_description(tmp_path: Path):
    lost = [
        line(None, None, 0, customer=7, description="Wall  Art "),
        line(None, None, 0, customer=7, description="KEEP CALM"),
        line(None, None, 1, customer=7, description="WALL ART"),
    ]
    write_sheet(tmp_path / "a.parquet", [*lost, END])
    assert Log(tmp_path).purchases.get_column("impression_id").to_list() == [
        "7@2010-03-03T09:30:KEEP CALM",
        "7@2010-03-03T09:30:WALL ART",
        "7@2010-03-04T09:30:WALL ART",
        "999999:99999",
    ]


def test_an_inferred_stock_code_stands_in_for_a_lost_one(tmp_path: Path):
    frame = pl.DataFrame([(*row, "UK") for row in [line("1", None, 0), END]], schema=LATER, orient="row")
    frame.with_columns(StockCode_inferred=pl.Series(["22423", None])).write_parquet(tmp_path / "a.parquet")
    assert Log(tmp_path).purchases.get_column("item_id").to_list() == ["22423", "99999"]


def test_a_purchase_is_kept_once_its_return_window_has_passed(tmp_path: Path):
    write_sheet(tmp_path / "a.parquet", [line("1", "85048", 0), END])
    row = Log(tmp_path, Config(return_window_days=14)).purchases.row(0, named=True)
    assert row["converted"]
    assert row["conversion_timestamp"] == utc(14)


def test_a_purchase_whose_window_outlives_the_log_is_not_known_to_be_kept(tmp_path: Path):
    write_sheet(
        tmp_path / "a.parquet", [line("1", "85048", 0), line("2", "85048", 170), line("3", "85048", 170.1), END]
    )
    log = Log(tmp_path)
    assert log.kept == {"1:85048": True, "2:85048": True, "3:85048": False, "999999:99999": False}
    assert log.purchases.filter(~pl.col("converted")).get_column("conversion_timestamp").null_count() == 2


def test_a_cancellation_returns_the_latest_purchase_before_it_of_that_customer_and_product(tmp_path: Path):
    lines = [
        line("1", "85048", 0),
        line("2", "85048", 5),
        line("3", "85048", 9),
        line("4", "85048", 5, customer=2),
        line("5", "22423", 5),
        line("C6", "85048", 7, quantity=-1),
        END,
    ]
    write_sheet(tmp_path / "a.parquet", lines)
    log = Log(tmp_path)
    assert [impression for impression, kept in log.kept.items() if not kept] == ["2:85048", "999999:99999"]
    assert log.left_out == {"cancellation, which marks the purchase before it as returned": 1}


def test_a_negative_quantity_is_a_cancellation_where_invoices_are_lost(tmp_path: Path):
    write_sheet(tmp_path / "a.parquet", [line(None, "85048", 0), line(None, "85048", 1, quantity=-1), END])
    assert Log(tmp_path).kept == {"1@2010-03-03T09:30:85048": False, "999999:99999": False}


def test_a_cancellation_after_the_window_or_without_a_purchase_changes_nothing_and_is_counted(tmp_path: Path):
    lines = [
        line("1", "85048", 0),
        line("C2", "85048", 31, quantity=-1),
        line("C3", "22423", 31, quantity=-1),
        END,
    ]
    write_sheet(tmp_path / "a.parquet", lines)
    log = Log(tmp_path)
    assert log.kept["1:85048"]
    assert log.left_out == {"cancellation without a purchase in the 30 days before": 2}


def test_an_item_is_what_its_first_sale_said_and_on_sale_from_that_monday(tmp_path: Path):
    lines = [
        line("2", "85048", 9, description="RENAMED LATER", price=9.99),
        line("1", "85048", 0, description="15CM  CHRISTMAS\tBALL ", price=6.95),
        END,
    ]
    write_sheet(tmp_path / "a.parquet", lines)
    item = Log(tmp_path).items.row(0, named=True)
    assert (item["item_id"], item["title"], item["price_cents"]) == ("85048", "15CM CHRISTMAS BALL", 695)
    assert item["event_timestamp"] == dt.datetime(2010, 3, 1, tzinfo=dt.timezone.utc)  # START is a Wednesday


def test_no_negative_is_older_than_its_item(tmp_path: Path):
    lines = [line(str(i), f"{10000 + i}", i % 7, customer=i) for i in range(100)]
    write_sheet(tmp_path / "a.parquet", [*lines, END])
    log = Log(tmp_path)
    joined = log.impressions.join(log.items, on="item_id", suffix="_of_item")
    assert len(joined) == len(log.impressions)
    assert (joined.get_column("event_timestamp_of_item") <= joined.get_column("event_timestamp")).all()


def test_negatives_are_drawn_as_configured(tmp_path: Path):
    lines = [line(str(i), f"{10000 + i}", 0, customer=i) for i in range(20)]
    write_sheet(tmp_path / "a.parquet", lines)
    config = Config(negatives=negative_sampling.Config(negatives_per_positive=3))
    impressions = Log(tmp_path, config).impressions
    assert impressions.get_column("is_sampled").sum() == 60
    assert impressions.get_column("impression_id").is_unique().all()


@pytest.mark.parametrize("form", ["%Y-%m-%d %H:%M:%S", "%-m/%-d/%Y %H:%M"])
def test_usual_date_formats_of_csv_sheets_are_read(tmp_path: Path, form: str):
    frame = pl.DataFrame([(*row, "UK") for row in [line("1", "85048", 0), END]], schema=EARLIER, orient="row")
    frame.with_columns(pl.col("InvoiceDate").dt.strftime(form)).write_csv(tmp_path / "a.csv")
    assert Log(tmp_path).purchases.get_column("event_timestamp")[0] == utc(0)


def test_customers_that_pandas_wrote_as_floats_are_whole_numbers(tmp_path: Path):
    frame = pl.DataFrame([(*row, "UK") for row in [line("1", "85048", 0), END]], schema=EARLIER, orient="row")
    for name, write in (("csv", pl.DataFrame.write_csv), ("parquet", pl.DataFrame.write_parquet)):
        (tmp_path / name).mkdir()
        write(frame.with_columns(pl.col("Customer ID").cast(pl.Float64)), tmp_path / name / f"a.{name}")
        assert set(Log(tmp_path / name).purchases.get_column("user_id")) == {"1", "99"}


def test_unreadable_dates_are_refused_with_the_remedy(tmp_path: Path):
    frame = pl.DataFrame([(*row, "UK") for row in [line("1", "85048", 0)]], schema=EARLIER, orient="row")
    frame.with_columns(InvoiceDate=pl.lit("3 March 2010")).write_csv(tmp_path / "a.csv")
    with pytest.raises(ValueError, match=r"a\.csv: 1 of 1 values of InvoiceDate are not times.*set date_format"):
        Log(tmp_path)


def test_a_missing_column_and_an_empty_folder_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no \.csv or \.parquet in .*Save each sheet"):
        list(shards(tmp_path, Config()))
    write_sheet(tmp_path / "a.csv", [END], ["Invoice", "Code", *EARLIER[2:]])
    with pytest.raises(ValueError, match=r"a\.csv: column StockCode missing \(found: Invoice, Code"):
        list(shards(tmp_path, Config()))


def test_a_latin_1_sheet_is_read_when_told_and_refused_when_not(tmp_path: Path):
    text = f"{','.join(EARLIER)}\n1,85048,GIFT VOUCHER £30,1,{at(0)},6.95,1,UK\n"
    (tmp_path / "a.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"byte 0xa3 at offset \d+ .*encoding = \"latin-1\""):
        list(shards(tmp_path, Config()))
    assert Log(tmp_path, Config(encoding="latin-1")).items.get_column("title").to_list() == ["GIFT VOUCHER £30"]


def test_the_label_rule_states_window_and_negatives():
    sentence = label_rule(Config(return_window_days=21))
    assert "cancelled no part of it within 21 days" in sentence
    assert "negatives are sampled" in sentence


@pytest.mark.realdata
def test_every_line_of_the_real_log_is_accounted_for(real_data: Path):
    one = Config(negatives=negative_sampling.Config(negatives_per_positive=1))
    log = Log(real_data / "online_retail_2", one)
    assert log.left_out["line of a sheet from the time on at which the next sheet begins"] == 22_523
    assert len(log.purchases) + sum(log.left_out.values()) == 525_461 + 541_909
    assert len(log.purchases) == 765_925
    assert log.items.get_column("title").null_count() == 0
