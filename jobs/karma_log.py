"""What KARMA learns from a log: users' clicks in order, the query of each, and what was shown beside it in vain.

    request r of user u:   i1  i2* i3  i4* i5           * clicked
    click on i2:           i4 is its neighbour, no negative; i1, i3, i5 are exposed-unclicked

Point in time: nothing of an impression at or after the cut is read. Rows that were drawn as negatives (`is_sampled`)
were never shown, and another user's page is another page, even under the same request_id. Out of core, by DuckDB.
"""

from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from embedders.histories import PADDING, Sequences
from embedders.prompts import QUERY_TEXT
from feature_repo.table_schemas import Queries
from jobs.interaction_sequences import InteractionCounts, InteractionLog
from jobs.lake import Lake

ROWS_AT_ONCE = 500_000

NO_QUERY = -1

CLICKS = """
    CREATE OR REPLACE TEMP TABLE clicks AS
    SELECT row_number() OVER (ORDER BY user_id, time, impression_id) - 1 AS event, user_id, request_id, query_text
    FROM known_interactions SEMI JOIN learnt_users USING (user_id) LEFT JOIN queries USING (query_id)
    WHERE time < epoch_us($before::TIMESTAMPTZ)
"""

EXPOSED = """
    WITH shown AS (
        SELECT event, catalogue.row AS item, min(md5(impressions.impression_id)) AS place
        FROM clicks JOIN impressions USING (request_id, user_id) JOIN catalogue USING (item_id)
        WHERE NOT is_sampled AND event_timestamp < $before
        GROUP BY event, item HAVING NOT bool_or(clicked)
    ), numbered AS (
        SELECT event, item, row_number() OVER (PARTITION BY event ORDER BY place, item) - 1 AS slot FROM shown
    )
    SELECT event, item, slot FROM numbered WHERE slot < $most
"""


class SearchLog(NamedTuple):
    """Clicks of the users that are learnt from.

    Attributes:
        sequences: catalogue rows, user after user, oldest first.
        query_texts: distinct queries under which anything was clicked, cleaned.
        query_E: [E] int32, row of `query_texts` of each click, NO_QUERY where there was none.
        exposed_EM: [E, M] int32, catalogue rows shown in the same request to the same user and never clicked there,
            PADDING on the right; memory-mapped. Of more than M, those whose impressions hash lowest.
    """

    sequences: Sequences
    query_texts: tuple[str, ...]
    query_E: NDArray[np.int32]
    exposed_EM: NDArray[np.int32]


def use_queries(lake: Lake, log: InteractionLog) -> None:
    """Let the log know the texts of its queries.

    Raises:
        TableError: `queries` is missing.
    """
    files = [str(path) for path in lake.parquet_files(Queries)]
    if files:
        log.connection.read_parquet(files).create_view("queries")
    else:
        log.connection.execute("CREATE VIEW queries AS SELECT '' AS query_id, '' AS query_text WHERE false")


def write_search_log(
    log: InteractionLog, folder: Path, before: datetime, counts: InteractionCounts, *, most_exposed: int
) -> SearchLog:
    """Write the arrays into `folder`, and map them.

    Args:
        log: with a catalogue and with queries.
        folder: for the arrays.
        before: later impressions are not seen.
        counts: the latest, of the same time: it chose the users.
        most_exposed: M.
    """
    sequences = log.write_sequences(folder, before, counts)
    log.connection.execute(CLICKS, {"before": before})
    query_texts, query_E = _queries(log, folder, counts.learnt_from)
    return SearchLog(
        sequences=sequences,
        query_texts=query_texts,
        query_E=query_E,
        exposed_EM=_exposed(log, folder, counts.learnt_from, before, most_exposed),
    )


def _queries(log: InteractionLog, folder: Path, num_clicks: int) -> tuple[tuple[str, ...], NDArray[np.int32]]:
    """Distinct texts, and which of them each click has."""
    raw = log.connection.execute(
        "SELECT DISTINCT query_text FROM clicks WHERE query_text IS NOT NULL ORDER BY query_text"
    ).pl()
    texts = raw.with_columns(cleaned=QUERY_TEXT).filter(pl.col("cleaned").is_not_null())
    distinct = texts.select(pl.col("cleaned").unique().sort()).with_row_index("number")
    numbers = texts.join(distinct, on="cleaned").select("query_text", pl.col("number").cast(pl.Int32))
    log.connection.register("query_numbers", numbers.to_arrow())
    query_E = np.lib.format.open_memmap(folder / "queries.npy", mode="w+", dtype=np.int32, shape=(num_clicks,))
    query_E[:] = NO_QUERY
    reader = log.connection.execute(
        "SELECT event, number FROM clicks JOIN query_numbers USING (query_text)"
    ).to_arrow_reader(ROWS_AT_ONCE)
    for arrow in reader:
        batch = pl.DataFrame(arrow)
        query_E[batch.get_column("event").to_numpy()] = batch.get_column("number").to_numpy()
    log.connection.unregister("query_numbers")
    query_E.flush()
    return tuple(distinct.get_column("cleaned")), query_E


def _exposed(
    log: InteractionLog, folder: Path, num_clicks: int, before: datetime, most_exposed: int
) -> NDArray[np.int32]:
    """Rows shown beside each click and not clicked."""
    exposed_EM = np.lib.format.open_memmap(
        folder / "exposed.npy", mode="w+", dtype=np.int32, shape=(num_clicks, most_exposed)
    )
    exposed_EM[:] = PADDING
    reader = log.connection.execute(EXPOSED, {"before": before, "most": most_exposed}).to_arrow_reader(ROWS_AT_ONCE)
    for arrow in reader:
        batch = pl.DataFrame(arrow)
        event_R, slot_R, item_R = (batch.get_column(name).to_numpy() for name in ("event", "slot", "item"))
        exposed_EM[event_R, slot_R] = item_R
    exposed_EM.flush()
    return exposed_EM


def search_digest(log: InteractionLog, before: datetime) -> str:
    """Identity of all that was shown before a time, with its queries, whatever order and shards it lies in."""
    fields = [
        "impression_id",
        "user_id",
        "item_id",
        "request_id",
        "query_text",
        "clicked::VARCHAR",
        "epoch_us(event_timestamp)::VARCHAR",
    ]
    told = ", ".join(f"coalesce({field}, chr(30))" for field in fields)  # a null is told from an empty text
    count, total = log.connection.execute(
        f"""SELECT count(*), coalesce(sum(md5_number_lower(concat_ws(chr(31), {told}))::HUGEINT), 0)
        FROM impressions LEFT JOIN queries USING (query_id) WHERE NOT is_sampled AND event_timestamp < $before""",
        {"before": before},
    ).fetchall()[0]
    return f"{count}-{int(total):x}"
