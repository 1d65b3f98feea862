"""What a log knew before its test window, and the rows of the test with what was known of them. DuckDB, out of core."""

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

import dataframely as dy
import duckdb
import polars as pl

from feature_repo.table_schemas import Impressions, Items, ItemSegments, TrainingExamples, Users, UserSegments
from jobs.lake import ROWS_PER_SHARD, Lake, table_name

JOINED_BY: Mapping[type[dy.Schema], str] = {
    Items: "item_id",
    Users: "user_id",
    ItemSegments: "item_id",
    UserSegments: "user_id",
    Impressions: "impression_id",
}
"""How a table is joined to the training examples: at most one of its rows to each."""

QUARTILES = (0.25, 0.5, 0.75)


class LogBeforeTest:
    """The tables that segments are cut by.

    Args:
        lake: where they are; a table that is not there, or has no rows, has no columns.
        connection: its views are made here.
        train_start: start of the first split window.
        test_start: start of the test window; nothing of the test is counted.
    """

    def __init__(
        self, lake: Lake, connection: duckdb.DuckDBPyConnection, train_start: datetime, test_start: datetime
    ) -> None:
        self.test_start = test_start
        self._connection = connection
        self._window = {"train_start": train_start, "test_start": test_start}
        self._columns: dict[str, Mapping[str, pl.DataType]] = {}
        self._keys = {table_name(schema): key for schema, key in JOINED_BY.items()}
        tables: tuple[type[dy.Schema], ...] = (TrainingExamples, *JOINED_BY)
        for schema in tables:
            if lake.exists(schema) and lake.manifest(schema).rows:
                name = table_name(schema)
                connection.read_parquet([str(path) for path in lake.parquet_files(schema)]).create_view(name)
                self._columns[name] = dict(lake.scan(schema).collect_schema())

    def columns(self, table: str) -> Mapping[str, pl.DataType]:
        """Columns of a table; none where it is not there or has no rows."""
        return self._columns.get(table, {})

    def words(self, table: str, column: str, limit: int) -> list[str]:
        """Values of a text column in the training rows before the test, the one with the most rows first."""
        found = self._connection.execute(
            f"""SELECT value FROM ({self._training_values(table, text_value(table, column))})
            GROUP BY value ORDER BY count(*) DESC, value LIMIT {limit}""",
            self._window if table == "impressions" else {},
        ).pl()
        return found.get_column("value").to_list()

    def numbers(self, table: str, column: str, limit: int) -> tuple[list[float], list[float]]:
        """The `limit` smallest values of a number in the training rows before the test, and its quartiles.

        A quartile is the smallest value with more than that share of the rows at or below it. Both are ascending.
        """
        number = f"{quoted(table, column)}::DOUBLE"
        window = self._window if table == "impressions" else {}
        sizes = f"""SELECT value, count(*) AS rows FROM ({self._training_values(table, number)})
            WHERE NOT isnan(value) GROUP BY value"""
        smallest = self._connection.execute(f"SELECT value FROM ({sizes}) ORDER BY value LIMIT {limit}", window).pl()
        quartiles = self._connection.execute(
            f"""SELECT {", ".join(f"min(value) FILTER (so_far > {q} * total)" for q in QUARTILES)} FROM (
                SELECT value, sum(rows) OVER (ORDER BY value) AS so_far, sum(rows) OVER () AS total FROM ({sizes}))""",
            window,
        ).fetchall()[0]
        return smallest.get_column("value").to_list(), [value for value in quartiles if value is not None]

    def impressions_of(self, column: str) -> str:
        """SQL of how often the value that an impression has in `column` was shown before the test; 0 if never."""
        view = f"{column}_before_test"
        start, end = (f"TIMESTAMPTZ '{moment.isoformat()}'" for moment in self._window.values())
        self._connection.execute(
            f"""CREATE OR REPLACE VIEW {view} AS SELECT {column}, count(*) AS num_impressions FROM impressions
            WHERE event_timestamp >= {start} AND event_timestamp < {end} GROUP BY {column}"""
        )
        return f"coalesce((SELECT num_impressions FROM {view} WHERE {view}.{column} = impressions.{column}), 0)"

    def _training_values(self, table: str, value: str) -> str:
        """SQL of the values over the training rows before the test, nulls left out.

        Every impression of the windows is a training example, so a column of `impressions` needs no join.
        """
        if table == "impressions":
            time = "impressions.event_timestamp"
            rows = f"impressions WHERE {time} >= $train_start AND {time} < $test_start"
        else:
            rows = f"training_examples {self._joins([table])} WHERE training_examples.split <> 'test'"
        return f"SELECT value FROM (SELECT {value} AS value FROM {rows}) WHERE value IS NOT NULL"

    def _joins(self, tables: Sequence[str]) -> str:
        return " ".join(
            f"LEFT JOIN {table} ON training_examples.{self._keys[table]} = {table}.{self._keys[table]}"
            for table in tables
            if table != "training_examples"
        )

    def _test(self, values: Mapping[str, str], tables: Sequence[str]) -> tuple[str, str]:
        selected = ", ".join(f'{value} AS "{name}"' for name, value in values.items())
        return selected, f"FROM training_examples {self._joins(tables)} WHERE training_examples.split = 'test'"

    def distinct_in_test(self, values: Mapping[str, str], tables: Sequence[str]) -> pl.DataFrame:
        """Distinct combinations of some values over the test examples."""
        selected, rows = self._test(values, tables)
        return self._connection.execute(f"SELECT DISTINCT {selected} {rows}").pl()

    def test_rows(self, values: Mapping[str, str], tables: Sequence[str]) -> Iterator[pl.DataFrame]:
        """impression_id, clicked, converted and the values of every test example, in batches, by impression_id.

        Args:
            values: column -> SQL over training_examples and the tables.
            tables: those that the SQL reads; an example without a row there has null.
        """
        keys = {name: f"training_examples.{name}" for name in ("impression_id", "clicked", "converted")}
        selected, rows = self._test({**keys, **values}, tables)
        for batch in self._connection.execute(f"SELECT {selected} {rows} ORDER BY 1").to_arrow_reader(ROWS_PER_SHARD):
            yield pl.DataFrame(batch)


def quoted(table: str, column: str) -> str:
    """A column in SQL, whatever its name."""
    escaped = column.replace('"', '""')
    return f'{table}."{escaped}"'


def text_value(table: str, column: str) -> str:
    """SQL of a text without blanks around it; null where nothing is left."""
    return f"nullif(trim({quoted(table, column)}::VARCHAR), '')"


@contextlib.contextmanager
def open_log(lake: Lake, train_start: datetime, test_start: datetime, memory_limit: str) -> Iterator[LogBeforeTest]:
    """The log before the test, read within so much memory; beyond it, DuckDB spills to disk, inside the lake."""
    with (
        tempfile.TemporaryDirectory(dir=lake.folder("scratch")) as spill,
        contextlib.closing(duckdb.connect()) as connection,
    ):
        connection.execute("SET memory_limit = ?", [memory_limit])
        connection.execute("SET temp_directory = ?", [spill])
        connection.execute("SET TimeZone = 'UTC'")
        yield LogBeforeTest(lake, connection, train_start, test_start)
