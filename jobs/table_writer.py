"""Writes one table of the lake: shards aside, duplicates found, quarantine kept, then two renames. See `jobs.lake`."""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import dataframely as dy
import duckdb
import polars as pl
from pydantic import BaseModel

from jobs.admission import BROKEN_RULES, NUM_SAMPLE_ROWS, TableError, admit, most_broken_rules

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
VERSIONS_KEPT = 2
"""The committed version and the one before it, which a reader may still hold open."""

DUPLICATE_SEARCH_MEMORY = "2GB"
"""DuckDB's limit while it looks for keys that occur in two shards; beyond it, it spills to disk."""


class ShardEntry(BaseModel, frozen=True):
    """One parquet file of a version."""

    file: str
    rows: int
    bytes: int
    sha256: str


class Manifest(BaseModel, frozen=True):
    """What a committed version of a table is."""

    table: str
    version: int
    rows: int
    shards: tuple[ShardEntry, ...]
    fingerprint: dict[str, str] = {}
    metadata: dict[str, Any] = {}
    created_timestamp: datetime

    @property
    def digest(self) -> str:
        """Hash of rows, fingerprint and metadata: equal digests mean equal tables, whenever they were written."""
        content = [[shard.sha256 for shard in self.shards], self.fingerprint, self.metadata]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def table_name(schema: type[dy.Schema]) -> str:
    """`ItemContentEmbeddings` -> `item_content_embeddings`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", schema.__name__).lower()


def point_current_at(folder: Path, target: str) -> None:
    """Make `folder/current` a link to `target`, in one rename."""
    link = folder / f".current-{uuid.uuid4().hex}"
    link.symlink_to(target)
    link.replace(folder / "current")


def _width_rules(schema: type[dy.Schema], fingerprint: Mapping[str, str]) -> dict[str, pl.Expr]:
    """Every vector is as wide as the fingerprint says: the model that is named is the one that made it."""
    width = fingerprint.get("dimension")
    vectors = [name for name, dtype in schema.create_empty().schema.items() if dtype == pl.List(pl.Float32)]
    return {f"{name} is {width} wide": pl.col(name).list.len() == int(width) for name in vectors if width is not None}


class TableWriter:
    """Takes shards and commits them together, on a clean exit from its `with` block; an error leaves the old table.

    Attributes:
        kept: rows accepted so far.
        quarantined: rows refused so far.
    """

    def __init__(
        self,
        *,
        root: Path,
        schema: type[dy.Schema],
        before: Manifest | None,
        fingerprint: Mapping[str, str] | None,
        metadata: Mapping[str, Any] | None,
        max_quarantined_share: float,
        rules: Mapping[str, pl.Expr] | None,
        keep_extra_columns: bool,
        now: Callable[[], datetime],
    ) -> None:
        self.schema, self.table = schema, table_name(schema)
        self.kept = self.quarantined = 0
        self.metadata: dict[str, Any] = dict(metadata if metadata is not None else before.metadata if before else {})
        self.fingerprint = dict(fingerprint if fingerprint is not None else before.fingerprint if before else {})
        self._folder, self._quarantine_folder = root / self.table, root / "quarantine"
        self._before, self._keep_extra_columns = before, keep_extra_columns
        self._rules = {**(rules or {}), **_width_rules(schema, self.fingerprint)}
        self._max_quarantined_share, self._now = max_quarantined_share, now
        self._refused: list[pl.DataFrame] = []
        self._shards: list[ShardEntry] = []
        self._lock: IO[str] | None = None

    def __enter__(self) -> "TableWriter":
        self._started = time.monotonic()
        versions = self._folder / "versions"
        versions.mkdir(parents=True, exist_ok=True)
        self._lock = (self._folder / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise TableError(
                self.table, "another process is writing this table", "wait for it to end, or stop it, then run again"
            ) from None
        for leftover in versions.glob(".staging-*"):
            shutil.rmtree(leftover)
        self._staging = versions / f".staging-{uuid.uuid4().hex}"
        self._staging.mkdir()
        for shard in self._before.shards if self._before else ():
            os.link(self._folder / "current" / shard.file, self._staging / shard.file)
            self._shards.append(shard)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._lock is not None
        try:
            if error is None:
                self._commit()
        finally:
            shutil.rmtree(self._staging, ignore_errors=True)
            self._lock.close()

    def write_shard(self, frame: pl.DataFrame) -> None:
        """Admit the rows of a frame and write them as one shard.

        Raises:
            TableError: a column is missing or of the wrong type.
        """
        admission = admit(
            self.table, self.schema, frame, rules=self._rules, keep_extra_columns=self._keep_extra_columns
        )
        self._refuse(admission.refused)
        if not admission.kept.is_empty():
            self._shards.append(self._write_parquet(admission.kept, f"part-{len(self._shards):05d}.parquet"))
            self.kept += len(admission.kept)

    def refuse(self, rows: pl.DataFrame) -> None:
        """Put rows into the quarantine that their maker refuses, any columns, with the reasons in `broken_rules`."""
        assert BROKEN_RULES in rows.columns, f"refused rows without {BROKEN_RULES}: {rows.columns}"
        self._refuse(rows)

    def _write_parquet(self, frame: pl.DataFrame, file: str) -> ShardEntry:
        path = self._staging / file
        frame.write_parquet(path, compression="zstd", statistics=True)
        with path.open("rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()
            os.fsync(written.fileno())
        return ShardEntry(file=file, rows=len(frame), bytes=path.stat().st_size, sha256=digest)

    def _refuse(self, rows: pl.DataFrame) -> None:
        if not rows.is_empty():
            self._refused.append(rows)
            self.quarantined += len(rows)

    def _commit(self) -> None:
        self._quarantine_keys_of_two_shards()
        quarantine = self._write_quarantine()
        offered = self.kept + self.quarantined
        if self.quarantined and self.quarantined > self._max_quarantined_share * offered:
            refused = pl.concat(self._refused, how="diagonal_relaxed")
            rules = ", ".join(f"{rule}: {count:_}" for rule, count in most_broken_rules(refused)[:5])
            raise TableError(
                self.table,
                f"rows break its rules [{rules}]",
                "mend the rows at their source"
                + (
                    f", or allow more than {self._max_quarantined_share:.1%} of refused rows (max_quarantined_share)"
                    if self._max_quarantined_share
                    else ""
                ),
                count=self.quarantined,
                total=offered,
                sample=refused.head(NUM_SAMPLE_ROWS),
                quarantine=quarantine,
            )
        if not self._shards:  # whoever reads the folder's parquet files, Feast's stores too, finds the columns
            self._shards.append(self._write_parquet(self.schema.create_empty(), "part-00000.parquet"))
        version = 1 + max((int(path.name) for path in (self._folder / "versions").glob("[0-9]*")), default=0)
        manifest = Manifest(
            table=self.table,
            version=version,
            rows=sum(shard.rows for shard in self._shards),
            shards=tuple(self._shards),
            fingerprint=self.fingerprint,
            metadata=self.metadata,
            created_timestamp=self._now(),
        )
        (self._staging / MANIFEST).write_text(manifest.model_dump_json(indent=2))
        self._staging.rename(self._folder / "versions" / f"{version:06d}")
        point_current_at(self._folder, f"versions/{version:06d}")
        for old in sorted((self._folder / "versions").glob("[0-9]*"))[:-VERSIONS_KEPT]:
            shutil.rmtree(old)
        logger.info(
            "%s: %s rows kept, %s quarantined%s, %s rows in all, %.1f s",
            self.table,
            f"{self.kept:_}",
            f"{self.quarantined:_}",
            f" ({quarantine})" if quarantine else "",
            f"{manifest.rows:_}",
            time.monotonic() - self._started,
        )

    def _write_quarantine(self) -> Path | None:
        if not self._refused:
            return None
        self._quarantine_folder.mkdir(exist_ok=True)
        path = self._quarantine_folder / f"{self.table}-{self._now():%Y%m%dT%H%M%S%f}.parquet"
        pl.concat(self._refused, how="diagonal_relaxed").write_parquet(path, compression="zstd")
        return path

    def _quarantine_keys_of_two_shards(self) -> None:
        """Keep the first row of a key that occurs in several shards; `admit` has seen to keys within a shard."""
        key = self.schema.primary_key()
        if len(self._shards) < 2 or not key or self.kept == 0:
            return
        keys = ", ".join(f'"{name}"' for name in key)
        files = [str(self._staging / shard.file) for shard in self._shards]
        with contextlib.closing(duckdb.connect()) as connection:
            connection.execute(f"SET memory_limit = '{DUPLICATE_SEARCH_MEMORY}'")
            connection.execute("SET temp_directory = ?", [str(self._staging / ".spill")])
            source = "read_parquet($files, filename = true, file_row_number = true)"
            repeated = connection.execute(
                f"SELECT {keys} FROM {source} GROUP BY ALL HAVING count(*) > 1", {"files": files}
            ).pl()
            if repeated.is_empty():
                return
            later = connection.execute(
                f"""SELECT filename, file_row_number FROM {source} SEMI JOIN repeated USING ({keys})
                QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY filename, file_row_number) > 1""",
                {"files": files},
            ).pl()
        positions = Counter(later.get_column("filename").to_list())
        for at, shard in enumerate(self._shards):
            path = self._staging / shard.file
            if not positions[str(path)]:
                continue
            rows = later.filter(pl.col("filename") == str(path)).get_column("file_row_number").to_list()
            numbered = pl.read_parquet(path).with_row_index("__row")
            is_later = pl.col("__row").is_in(rows)
            self._refuse(
                numbered.filter(is_later)
                .drop("__row")
                .with_columns(pl.lit(["primary_key (a row with this key came before)"]).alias(BROKEN_RULES))
            )
            self.kept -= len(rows)
            path.unlink()  # never write into the old version's file: this may be a hard link to it
            self._shards[at] = self._write_parquet(numbered.filter(~is_later).drop("__row"), shard.file)
