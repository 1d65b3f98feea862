"""The interactions of a log (clicks), as the arrays that an embedding model is trained on. Out of core.

DuckDB sorts the clicks by (user, time), spilling to disk; they come back in batches and go straight into memory-mapped
arrays. Clicks of the same microsecond are in the order of their impression_id.
"""

import contextlib
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple

import duckdb
import numpy as np
import polars as pl
from numpy.typing import NDArray

from embedders.histories import Sequences
from feature_repo.table_schemas import Impressions
from jobs.lake import Lake

LEAST_INTERACTIONS = 2
"""Of a user that is learnt from: one is history, the other the target."""

INTERACTIONS_AT_ONCE = 500_000

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

INTERACTIONS = """
    CREATE VIEW interactions AS
    SELECT user_id, item_id, impression_id, event_timestamp, request_id, query_id
    FROM impressions WHERE clicked AND NOT is_sampled
"""

KNOWN_INTERACTIONS = """
    CREATE VIEW known_interactions AS
    SELECT user_id, catalogue.row AS item, epoch_us(event_timestamp) AS time, impression_id, request_id, query_id
    FROM interactions JOIN catalogue USING (item_id)
"""


class LogSpan(NamedTuple):
    """When the first and the last impression of a log were."""

    first: datetime
    last: datetime


class InteractionCounts(NamedTuple):
    """What became of the interactions before a time.

    Attributes:
        interactions: all of them.
        without_vector: dropped, as their item has no content vector.
        alone: dropped, as it is its user's only one.
        left_out: dropped, as their user is not in the sample.
        users: users that are learnt from.
        learnt_from: their interactions.
    """

    interactions: int
    without_vector: int
    alone: int
    left_out: int
    users: int
    learnt_from: int


class HeldOut(NamedTuple):
    """Users with interactions on both sides of a time.

    Attributes:
        history_rows_T: catalogue rows, user after user, oldest first: what they did before.
        history_lengths_U: how many of each.
        targets: what they did afterwards.
    """

    history_rows_T: NDArray[np.int64]
    history_lengths_U: NDArray[np.int64]
    targets: Sequences


class InteractionLog:
    """The clicks of a lake, in DuckDB. See `open_log`.

    Attributes:
        connection: to views `impressions`, `interactions` and, once there is a catalogue, `known_interactions`.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, *, is_empty: bool) -> None:
        self.connection = connection
        self._is_empty = is_empty

    def span(self) -> LogSpan | None:
        """None where there is no impression."""
        if self._is_empty:
            return None
        first, last = self.connection.execute(
            "SELECT min(event_timestamp), max(event_timestamp) FROM impressions"
        ).fetchall()[0]
        return LogSpan(first, last)

    def digest(self, before: datetime) -> str:
        """Identity of the interactions before a time, whatever order and shards they lie in."""
        count, total = self.connection.execute(
            """SELECT count(*), coalesce(sum(md5_number_lower(
                concat_ws(chr(31), user_id, item_id, impression_id, epoch_us(event_timestamp)::VARCHAR))::HUGEINT), 0)
            FROM interactions WHERE event_timestamp < $before""",
            {"before": before},
        ).fetchall()[0]
        return f"{count}-{int(total):x}"

    def use_catalogue(self, item_ids: pl.Series) -> None:
        """Number the items: an interaction with one that is not there is dropped (and counted)."""
        catalogue = pl.DataFrame({"item_id": item_ids, "row": np.arange(len(item_ids), dtype=np.int32)})
        self.connection.register("catalogue", catalogue.to_arrow())
        self.connection.execute(KNOWN_INTERACTIONS)

    def counts(self, before: datetime, *, most_users: int | None = None, seed: int = 0) -> InteractionCounts:
        """Choose the users that are learnt from, and see what becomes of the interactions before a time.

        Args:
            before: later interactions are not seen.
            most_users: size of a sample of the users that have done enough; None: all of them.
            seed: of the sample; the same one draws the same users.
        """
        sample = "" if most_users is None else "ORDER BY md5($seed || user_id), user_id LIMIT $most_users"
        told = {} if most_users is None else {"seed": str(seed), "most_users": most_users}
        self.connection.execute(
            f"""CREATE OR REPLACE TEMP TABLE learnt_users AS
            SELECT user_id FROM known_interactions WHERE time < $before GROUP BY user_id HAVING count(*) >= $least
            {sample}""",
            {"before": microseconds(before), "least": LEAST_INTERACTIONS, **told},
        )
        interactions = self.connection.execute(
            "SELECT count(*) FROM interactions WHERE event_timestamp < $before", {"before": before}
        ).fetchall()[0][0]
        known, alone, users, learnt_from = self.connection.execute(
            """WITH each AS (
                SELECT user_id, count(*) AS n FROM known_interactions WHERE time < $before GROUP BY user_id)
            SELECT coalesce(sum(n), 0), coalesce(sum(n) FILTER (n < $least), 0), count(learnt_users.user_id),
                coalesce(sum(n) FILTER (learnt_users.user_id IS NOT NULL), 0)
            FROM each LEFT JOIN learnt_users USING (user_id)""",
            {"before": microseconds(before), "least": LEAST_INTERACTIONS},
        ).fetchall()[0]
        return InteractionCounts(
            interactions=interactions,
            without_vector=interactions - int(known),
            alone=int(alone),
            left_out=int(known) - int(alone) - int(learnt_from),
            users=users,
            learnt_from=int(learnt_from),
        )

    def write_sequences(self, folder: Path, before: datetime, counts: InteractionCounts) -> Sequences:
        """Write the interactions of the users that are learnt from into `folder`, and map them.

        Args:
            folder: for the arrays.
            before: later interactions are not seen.
            counts: the latest, of the same time: it chose the users.
        """
        folder.mkdir(parents=True, exist_ok=True)

        def array(name: str, dtype: type[np.generic], length: int) -> np.memmap:
            return np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=(length,))

        items = array("items", np.int32, counts.learnt_from)
        times = array("times", np.int64, counts.learnt_from)
        offsets = array("offsets", np.int64, counts.users + 1)
        reader = self.connection.execute(
            """SELECT user_id, item, time FROM known_interactions SEMI JOIN learnt_users USING (user_id)
            WHERE time < $before ORDER BY user_id, time, impression_id""",
            {"before": microseconds(before)},
        ).to_arrow_reader(INTERACTIONS_AT_ONCE)
        position, number, last_user = 0, 0, None
        for arrow in reader:
            batch = pl.DataFrame(arrow)
            users = batch.get_column("user_id")
            begins = np.flatnonzero((users != users.shift(1, fill_value=last_user)).fill_null(True).to_numpy())
            offsets[number : number + len(begins)] = position + begins
            items[position : position + len(batch)] = batch.get_column("item").to_numpy()
            times[position : position + len(batch)] = batch.get_column("time").to_numpy()
            number, position, last_user = number + len(begins), position + len(batch), users[-1]
        assert (number, position) == (counts.users, counts.learnt_from)
        offsets[number] = position
        for mapped in (items, times, offsets):
            mapped.flush()
        return Sequences.open(folder)

    def held_out(self, cut: datetime, end: datetime, *, most_users: int, most_history: int, seed: int) -> HeldOut:
        """A sample of the users with interactions before `cut` and from there to `end`.

        Args:
            cut: divides history and targets.
            end: later interactions are not seen.
            most_users: size of the sample; the same seed draws the same users.
            most_history: of a longer history the newest.
            seed: of the sample.
        """
        rows = self.connection.execute(
            """WITH chosen AS (
                SELECT user_id FROM known_interactions WHERE time < $end GROUP BY user_id
                HAVING min(time) < $cut AND max(time) >= $cut ORDER BY md5($seed || user_id), user_id LIMIT $most_users)
            SELECT user_id, item, time >= $cut AS is_target FROM known_interactions SEMI JOIN chosen USING (user_id)
            WHERE time < $end
            QUALIFY is_target OR row_number() OVER (
                PARTITION BY user_id, time >= $cut ORDER BY time DESC, impression_id DESC) <= $most_history
            ORDER BY user_id, time, impression_id""",
            {
                "cut": microseconds(cut),
                "end": microseconds(end),
                "most_users": most_users,
                "most_history": most_history,
                "seed": str(seed),
            },
        ).pl()
        history, targets = (rows.filter(pl.col("is_target") == side) for side in (False, True))

        def lengths(side: pl.DataFrame) -> NDArray[np.int64]:
            counted = side.group_by("user_id", maintain_order=True).agg(n=pl.len().cast(pl.Int64))
            return counted.get_column("n").to_numpy()

        return HeldOut(
            history_rows_T=history.get_column("item").cast(pl.Int64).to_numpy(),
            history_lengths_U=lengths(history),
            targets=Sequences(
                targets.get_column("item").to_numpy(), None, np.concatenate([[0], np.cumsum(lengths(targets))])
            ),
        )


@contextlib.contextmanager
def open_log(lake: Lake, spill: Path, memory_limit: str) -> Iterator[InteractionLog]:
    """Open the clicks of a lake.

    Args:
        lake: where `impressions` is.
        spill: folder for what does not fit into memory.
        memory_limit: of DuckDB, such as "2GB".

    Raises:
        TableError: the log is missing.
    """
    files = [str(path) for path in lake.parquet_files(Impressions)]
    with contextlib.closing(duckdb.connect()) as connection:
        connection.execute("SET memory_limit = ?", [memory_limit])
        connection.execute("SET temp_directory = ?", [str(spill)])
        connection.execute("SET TimeZone = 'UTC'")
        if files:  # an earlier version wrote none for an empty log
            connection.read_parquet(files).create_view("impressions")
            connection.execute(INTERACTIONS)
        yield InteractionLog(connection, is_empty=lake.manifest(Impressions).rows == 0)


def microseconds(time: datetime) -> int:
    """Since 1970."""
    return (time - EPOCH) // timedelta(microseconds=1)
