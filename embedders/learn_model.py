"""A trained LEARN network as the jobs use it: content vectors in, item and user vectors out, and a folder to keep it.

Letters: N items, C content width, d output width, H histories, T entries of all histories together, K interests.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from embedders.histories import padded_rows
from embedders.interests import HistoryMeans
from embedders.learn import FrozenContent, LearnNetwork, LearnShape

ITEMS_AT_ONCE = 4096
POSITIONS_AT_ONCE = 32_768
"""History positions of one forward pass: histories of like length share one, so little is padding."""


class LearnModel:
    """Both towers, in eval mode. The content is the caller's: a catalogue grows, the model does not.

    Args:
        network: trained over frozen content (an ID table cannot tell anything of a new item).
    """

    def __init__(self, network: LearnNetwork) -> None:
        self.network = network.eval()

    @property
    def content_dim(self) -> int:
        """C."""
        return self.network.adaptor.in_features

    @property
    def output_dim(self) -> int:
        """d."""
        return self.network.shape.output_dim

    @torch.inference_mode()
    def item_vectors(self, content_NC: NDArray[np.float32]) -> NDArray[np.float32]:
        """Each item alone through the item tower.

        Args:
            content_NC: content vectors; may be memory-mapped.

        Returns:
            [N, d] float32, unit norm.
        """
        self._take(content_NC)
        vectors_Nd = np.empty((len(content_NC), self.output_dim), np.float32)
        for start in range(0, len(content_NC), ITEMS_AT_ONCE):
            rows = torch.arange(start, min(start + ITEMS_AT_ONCE, len(content_NC)), device=self._device)
            vectors_Nd[start : start + len(rows)] = self.network.items(rows).cpu().numpy()
        return vectors_Nd

    @torch.inference_mode()
    def user_vectors(
        self, content_NC: NDArray[np.float32], rows_T: NDArray[np.int64], lengths_H: NDArray[np.int64]
    ) -> HistoryMeans:
        """Each history through the user tower, read at its last position; of a long one the newest `max_history` items.

        Args:
            content_NC: content vectors; may be memory-mapped.
            rows_T: the histories one after the other, oldest item first, each entry a row of `content_NC`, or -1 for
                an item without a vector, which is passed over.
            lengths_H: entries of each history; adds up to T.

        Returns:
            Vectors of the histories in which any item has one; nothing ever cancels out.

        Raises:
            ValueError: the lengths do not add up to the entries, or the content has another width than the model's.
        """
        if int(lengths_H.sum()) != len(rows_T):
            raise ValueError(f"history lengths add up to {int(lengths_H.sum())}, but there are {len(rows_T)} entries")
        self._take(content_NC)
        owner_T = np.repeat(np.arange(len(lengths_H)), lengths_H)
        known_T = rows_T >= 0
        num_items_H = np.bincount(owner_T[known_T], minlength=len(lengths_H))
        histories_K = np.flatnonzero(num_items_H)
        num_items_K = num_items_H[histories_K]
        ends_K = np.cumsum(num_items_K)
        known_rows = rows_T[known_T].astype(np.int32)
        most = self.network.shape.max_history
        newest = [known_rows[max(end - size, end - most) : end] for end, size in zip(ends_K, num_items_K, strict=True)]
        vectors_Kd = np.empty((len(histories_K), self.output_dim), np.float32)
        for chosen in _of_like_length(np.minimum(num_items_K, most)):
            history_BL = torch.from_numpy(padded_rows([newest[at] for at in chosen])).to(self._device)
            vectors_Kd[chosen] = self.network.last_users(history_BL).cpu().numpy()
        return HistoryMeans(vectors=vectors_Kd, histories=histories_K, num_items=num_items_K, num_cancelled=0)

    def weights_sha256(self) -> str:
        """Hash of the shape and of every weight, whatever the file they lie in."""
        digest = hashlib.sha256(json.dumps(asdict(self.network.shape), sort_keys=True).encode())
        for name, weight in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Write weights and shape; a reader sees the old files or the new ones, `learn.json` last."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: weight.cpu() for name, weight in self.network.state_dict().items()}
        torch.save(weights, folder / "network.tmp")
        (folder / "network.tmp").replace(folder / "network.pt")
        description = {"content_dim": self.content_dim, "shape": asdict(self.network.shape)}
        (folder / "learn.json").write_text(json.dumps(description, indent=2))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote, to the GPU if there is one."""
        description = json.loads((folder / "learn.json").read_text())
        no_content = FrozenContent(np.empty((0, description["content_dim"]), np.float32))
        network = LearnNetwork(no_content, LearnShape(**description["shape"]))
        network.load_state_dict(torch.load(folder / "network.pt", weights_only=True))
        return cls(network.to("cuda" if torch.cuda.is_available() else "cpu"))

    @property
    def _device(self) -> torch.device:
        return self.network.adaptor.weight.device

    def _take(self, content_NC: NDArray[np.float32]) -> None:
        if content_NC.shape[1] != self.content_dim:
            raise ValueError(
                f"LEARN: this model was trained on content vectors {self.content_dim} wide, got {content_NC.shape[1]}. "
                "Fit it again on the vectors of the encoder in use (fit_embedder)."
            )
        self.network.inputs = FrozenContent(content_NC)


def _of_like_length(lengths_K: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Positions of histories of like length, as many as make up a forward pass; the longest first."""
    order = np.argsort(-lengths_K, kind="stable")
    start = 0
    while start < len(order):
        stop = start + max(1, POSITIONS_AT_ONCE // int(lengths_K[order[start]]))
        yield order[start:stop]
        start = stop
