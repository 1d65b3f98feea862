"""Write a report and its numbers so that a reader never meets half a file."""

import json
import os
from pathlib import Path
from typing import Any

import polars as pl


def write_text(path: Path, text: str) -> None:
    """Write a file aside, then rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def write_parquet(path: Path, frame: pl.DataFrame) -> None:
    """Write a table aside, then rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    frame.write_parquet(aside, compression="zstd")
    aside.replace(path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object; NaN is refused, as it is not JSON."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
