"""What a killed training run goes on from: one file, replaced after every epoch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

UNFINISHED = "unfinished.pt"
"""The file's name, where a folder has one model in training at a time."""


class Checkpoint:
    """The state of one training run, on disk.

    Args:
        path: of the file.
        identity: all that makes another run (data, settings), as JSON can say it. Another run's state is not gone on
            from, and is replaced.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any] | str) -> None:
        self.path = path
        self._identity = json.loads(json.dumps(identity))

    def read(self) -> Any | None:
        """The state that was written last; None where there is none of this run."""
        if not self.path.exists():
            return None
        kept = torch.load(self.path, weights_only=True)
        return kept["state"] if kept.get("identity") == self._identity else None

    def write(self, state: Mapping[str, Any]) -> None:
        """Replace the file; a kill meanwhile leaves the one before."""
        aside = self.path.with_suffix(".tmp")
        torch.save({"identity": self._identity, "state": dict(state)}, aside)
        aside.replace(self.path)
