"""One adapter a raw source: each turns somebody's log into shards of the canonical tables."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import dataframely as dy
import polars as pl
from pydantic import BaseModel

PICTURES_PER_SHARD = 2_000
"""A picture weighs as much as hundreds of other rows: shards of pictures are short."""


class Shard(NamedTuple):
    """Some rows of one canonical table, in any order; `jobs.ingest` casts, checks and writes them."""

    schema: type[dy.Schema]
    frame: pl.DataFrame


class LeftOut(NamedTuple):
    """Rows of the raw log that a stated rule of the adapter keeps out of the tables; `jobs.ingest` reports them."""

    rule: str
    num_rows: int


class Refused(NamedTuple):
    """Rows that the adapter itself found bad, any columns, with the reasons in `jobs.admission.BROKEN_RULES`.

    They go to the table's quarantine: a picture whose file is gone, say.
    """

    schema: type[dy.Schema]
    frame: pl.DataFrame


class RawSource(Protocol):
    """What the module of an adapter holds."""

    Config: type[BaseModel]

    def label_rule(self, config: Any) -> str:
        """What `clicked` and `converted` stand for in this log, for the report."""

    def raw_files(self, path: Path | None, config: Any) -> list[Path]:
        """The files that `shards` would read, so that a change of them can be noticed."""

    def shards(self, path: Path | None, config: Any) -> Iterator[Shard | LeftOut | Refused]:
        """The log as shards, which may interleave tables; never more of it in memory than a shard needs."""
