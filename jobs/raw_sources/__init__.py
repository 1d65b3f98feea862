"""One adapter a raw source: each turns somebody's log into shards of the canonical tables."""

from typing import NamedTuple

import dataframely as dy
import polars as pl


class Shard(NamedTuple):
    """Some rows of one canonical table, in any order; `jobs.ingest` casts, checks and writes them."""

    schema: type[dy.Schema]
    frame: pl.DataFrame
