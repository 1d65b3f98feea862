"""Folders of trained models in the lake: one folder a model, named by what it was made of.

A model is written aside and put in place by a rename, so that a reader finds all of it or nothing. The one before stays
until it is asked for no more.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from jobs.checkpoint import UNFINISHED


def write_model(models: Path, name: str, save: Callable[[Path], object]) -> Path:
    """The folder of a model, with what `save` writes into it.

    Args:
        models: the folder of all of them.
        name: of the folder in it; may name folders in between.
        save: writes the model's files into a folder.
    """
    folder = models / name
    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=models, prefix=".") as aside:
        made = Path(aside) / folder.name
        save(made)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    return folder


def keep_only(models: Path, name: str) -> None:
    """Remove every other model, and the checkpoint that this one may have gone on from."""
    for old in models.iterdir():
        if old.is_dir() and old.name != name:
            shutil.rmtree(old)
    (models / UNFINISHED).unlink(missing_ok=True)
