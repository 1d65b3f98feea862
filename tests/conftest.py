"""Fixtures that several test files share."""

import datetime as dt
import os
from pathlib import Path

import pytest

from jobs.lake import Lake

os.environ["HF_HUB_OFFLINE"] = "1"

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def now() -> dt.datetime:
    """The time on the clock of the `lake` fixture."""
    return NOW


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """An empty lake whose clock stands still."""
    return Lake(tmp_path / "lake", now=lambda: NOW)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real data sets, beside the project; skips where there is none."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real data at {REAL_DATA}")
    return REAL_DATA
