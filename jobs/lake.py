"""The lake: the only reader and writer of tables.

    <root>/<table>/versions/000003/part-00000.parquet ...  manifest.json
    <root>/<table>/current -> versions/000003
    <root>/quarantine/<table>-<time>.parquet

A version is written aside, then renamed, then `current` is pointed at it by another rename: whoever reads sees the
old table or the new one, never half of either, and a killed job leaves nothing but an unnamed folder, swept away by
the next writer. Appending makes a new version of hard links to the old shards plus the new ones.
"""

from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import dataframely as dy
import numpy as np
import polars as pl
from numpy.typing import NDArray

from feature_repo.table_schemas import ImpressionSegments, TrainingExamples
from jobs.admission import TableError
from jobs.table_writer import MANIFEST, Manifest, TableWriter, table_name
from jobs.vector_matrix import VectorMatrix, open_vector_matrix, write_vector_matrix

__all__ = ["Lake", "Manifest", "TableError", "TableWriter", "VectorMatrix", "table_name"]

S = TypeVar("S", bound=dy.Schema)

OPEN_TABLES: tuple[type[dy.Schema], ...] = (TrainingExamples, ImpressionSegments)
"""Tables that keep columns beyond the declared ones: features of the services joined, kinds of segments configured."""

ROWS_PER_SHARD = 500_000
"""Rows of one shard when a whole frame is written: a shard of the widest table stays below 1 GB in memory."""


def utc_now() -> datetime:
    """The wall clock, in UTC."""
    return datetime.now(timezone.utc)


class Lake:
    """A folder of tables, each validated against its schema when it is written.

    Args:
        root: the folder; made when it is first written to.
        now: the clock that stamps manifests and judges "in the future"; tests pass a fixed one.
    """

    def __init__(self, root: Path, *, now: Callable[[], datetime] = utc_now) -> None:
        self.root = root.expanduser().resolve()
        self.now = now

    def exists(self, schema: type[dy.Schema]) -> bool:
        """Whether the table has been written."""
        return (self.table_path(schema) / MANIFEST).exists()

    def table_path(self, schema: type[dy.Schema]) -> Path:
        """The folder of the committed shards. The path stays the same from version to version (a symbolic link)."""
        return self.root / table_name(schema) / "current"

    def manifest(self, schema: type[dy.Schema]) -> Manifest:
        """What the committed version is: rows, shards, fingerprint, metadata.

        Raises:
            TableError: the table has not been written.
        """
        path = self.table_path(schema) / MANIFEST
        if not path.exists():
            raise TableError(
                table_name(schema),
                f"there is no such table in {self.root}",
                "run the step that writes it (`tailrank plan` shows which)",
            )
        return Manifest.model_validate_json(path.read_text())

    def parquet_files(self, schema: type[dy.Schema]) -> list[Path]:
        """The committed shards, in the order in which they were written.

        Raises:
            TableError: the table has not been written, or a shard is not as long as it was when it was committed.
        """
        folder = self.table_path(schema).resolve()
        files = []
        for shard in self.manifest(schema).shards:
            path = folder / shard.file
            size = path.stat().st_size if path.exists() else 0
            if size != shard.bytes:
                raise TableError(
                    table_name(schema),
                    f"shard {path} is half-written: {size:_} bytes, its manifest says {shard.bytes:_}",
                    "restore the file, or remove the table's folder and run the step that writes it again",
                )
            files.append(path)
        return files

    def scan(self, schema: type[S]) -> dy.LazyFrame[S]:
        """The table, lazily. Raises as `parquet_files` does."""
        files = self.parquet_files(schema)
        if not files:
            return schema.create_empty(lazy=True)
        return pl.scan_parquet(files)  # type: ignore[return-value]

    def read(self, schema: type[S]) -> dy.DataFrame[S]:
        """The table, in memory. Raises as `parquet_files` does."""
        return self.scan(schema).collect()  # type: ignore[return-value]

    def writer(
        self,
        schema: type[dy.Schema],
        *,
        append: bool = False,
        fingerprint: Mapping[str, str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        max_quarantined_share: float = 0.0,
        rules: Mapping[str, pl.Expr] | None = None,
    ) -> TableWriter:
        """Open a table for writing shard by shard; leave the `with` block to commit it.

        Args:
            schema: which table.
            append: keep the committed rows and add to them (and keep their fingerprint and metadata unless given).
            fingerprint: identity of the model whose vectors the table holds.
            metadata: anything JSON that readers need beside the rows.
            max_quarantined_share: commit although up to this share of the rows was refused.
            rules: further conditions a row must meet (true = good), named.
        """
        return TableWriter(
            root=self.root,
            schema=schema,
            before=self.manifest(schema) if append and self.exists(schema) else None,
            fingerprint=fingerprint,
            metadata=metadata,
            max_quarantined_share=max_quarantined_share,
            rules=rules,
            keep_extra_columns=schema in OPEN_TABLES,
            now=self.now,
        )

    def write(
        self,
        schema: type[dy.Schema],
        frame: pl.DataFrame | pl.LazyFrame,
        *,
        fingerprint: Mapping[str, str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        max_quarantined_share: float = 0.0,
        rules: Mapping[str, pl.Expr] | None = None,
    ) -> Manifest:
        """Replace a table by a frame; a lazy frame is streamed, never held whole.

        Raises:
            TableError: columns or rows break the schema (`jobs.admission`); nothing has changed then.
        """
        with self.writer(
            schema,
            fingerprint=fingerprint,
            metadata=metadata,
            max_quarantined_share=max_quarantined_share,
            rules=rules,
        ) as writer:
            if isinstance(frame, pl.LazyFrame):
                for batch in frame.collect_batches(chunk_size=ROWS_PER_SHARD):
                    writer.write_shard(batch)
            else:
                for batch in frame.iter_slices(ROWS_PER_SHARD):
                    writer.write_shard(batch)
        return self.manifest(schema)

    def write_matrix(
        self, name: str, ids: NDArray[np.int64], vectors: NDArray[np.float32], fingerprint: Mapping[str, str]
    ) -> None:
        """Replace a matrix of vectors that training gathers from. `ids` [n] in any order, `vectors` [n, width]."""
        write_vector_matrix(self.root / "matrices" / name, ids, vectors, fingerprint)

    def open_matrix(self, name: str) -> VectorMatrix:
        """A matrix written by `write_matrix`, memory-mapped.

        Raises:
            TableError: it has not been written.
        """
        return open_vector_matrix(self.root / "matrices" / name)

    def folder(self, name: str) -> Path:
        """A folder of the lake for things that are not tables: checkpoints, reports, Feast's registry."""
        path = self.root / name
        path.mkdir(parents=True, exist_ok=True)
        return path
