"""A trained KARMA network as the jobs use it: features in, vectors of items and users out, and a folder to keep it.

What serves knows nothing of the decoders (`embedders.karma_decoder`): heavy training, light inference.

Letters: N items, C text width, V image width, d output width, H histories, T entries of all histories together,
K interests.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer

from embedders.backbone import quiet
from embedders.histories import padded_rows
from embedders.interests import HistoryMeans
from embedders.karma import QUERY_LEAD, KarmaNetwork
from embedders.karma_features import FrozenFeatures
from embedders.karma_packing import QUERY_TOKENS, SharedPass, pack, shared_passes
from embedders.karma_towers import KarmaShape, KarmaTowers

ITEMS_AT_ONCE = 4096
TOKENS_AT_ONCE = 4096
"""Of one forward pass of the language model, padding included."""

Precision = Literal["float32", "bfloat16"]


class KarmaModel:
    """Both towers, in eval mode. The features are the caller's: a catalogue grows, the model does not.

    Args:
        towers: trained.
        tokenizer: of its language model; queries are read with it.
        model_id: of the language model, for messages.
        precision: of the language model's forward pass.
    """

    def __init__(self, towers: KarmaTowers, tokenizer: Any, model_id: str, precision: Precision = "float32") -> None:
        self.towers, self.tokenizer, self.model_id, self.precision = towers.eval(), tokenizer, model_id, precision

    @classmethod
    def of_network(cls, network: KarmaNetwork, precision: Precision = "float32") -> Self:
        """The towers of a network, e.g. to validate one that is still being trained."""
        return cls(network.towers, network.lm.tokenizer, network.lm.model_id, precision)

    @property
    def content_dim(self) -> int:
        """C."""
        return int(self.towers.features.content_mean_C.numel())

    @property
    def image_dim(self) -> int | None:
        """V; None where the model knows no pictures."""
        return int(self.towers.features.image_mean_V.numel()) or None

    @property
    def output_dim(self) -> int:
        """d."""
        return self.towers.shape.output_dim

    @property
    def max_history(self) -> int:
        """Items that are read of a history, the newest."""
        return self.towers.shape.max_history

    @torch.inference_mode()
    def item_vectors(
        self, content_NC: NDArray[np.float32], image_NV: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Each item through the item tower; no language model takes part.

        Args:
            content_NC: text vectors; may be memory-mapped.
            image_NV: image vectors, zeros where there is no picture; None: nobody has one.

        Returns:
            [N, d] float32, unit norm.
        """
        self._take(content_NC, image_NV)
        vectors_Nd = np.empty((len(content_NC), self.output_dim), np.float32)
        for start in range(0, len(content_NC), ITEMS_AT_ONCE):
            rows = torch.arange(start, min(start + ITEMS_AT_ONCE, len(content_NC)), device=self._device)
            vectors_Nd[start : start + len(rows)] = self.towers.items(rows).cpu().numpy()
        return vectors_Nd

    @torch.inference_mode()
    def user_vectors(
        self,
        content_NC: NDArray[np.float32],
        rows_T: NDArray[np.int64],
        lengths_H: NDArray[np.int64],
        *,
        image_NV: NDArray[np.float32] | None = None,
        queries: Sequence[str | None] | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> HistoryMeans:
        """Each history, with its query where there is one, through the language model, read out at [INT].

        Histories that begin alike, such as one user's at successive midnights, are read in one pass: each sees what it
        would see alone. Nothing is generated.

        Args:
            content_NC: text vectors; may be memory-mapped.
            rows_T: the histories one after the other, oldest item first, each entry a row of `content_NC`, or -1 for
                an item without a vector, which is passed over.
            lengths_H: entries of each history; adds up to T.
            image_NV: image vectors, as in `item_vectors`.
            queries: what each user searches for, as clean as in training (`embedders.prompts.QUERY_TEXT`), cut off here
                as it was there; None, or None for one of them: nothing.
            on_progress: called after every forward pass with the number of histories it finished.

        Returns:
            Vectors of the histories in which any item has one; nothing ever cancels out.

        Raises:
            ValueError: the lengths do not add up to the entries, or the features have other widths than the model's.
        """
        if int(lengths_H.sum()) != len(rows_T):
            raise ValueError(f"history lengths add up to {int(lengths_H.sum())}, but there are {len(rows_T)} entries")
        self._take(content_NC, image_NV)
        owner_T = np.repeat(np.arange(len(lengths_H)), lengths_H)
        known_T = rows_T >= 0
        num_items_H = np.bincount(owner_T[known_T], minlength=len(lengths_H))
        histories_K = np.flatnonzero(num_items_H)
        num_items_K = num_items_H[histories_K]
        ends_K = np.cumsum(num_items_K)
        known_rows = rows_T[known_T].astype(np.int32)
        most = self.max_history
        newest = [known_rows[max(end - size, end - most) : end] for end, size in zip(ends_K, num_items_K, strict=True)]
        asked_K = self._query_tokens([None if queries is None else queries[at] for at in histories_K.tolist()])
        vectors_Kd = np.empty((len(histories_K), self.output_dim), np.float32)
        for passes in self._forward_passes(shared_passes(newest), asked_K):
            numbers = [number for one in passes for number in one.numbers]
            vectors_Kd[numbers] = self._read(passes, asked_K)
            if on_progress:
                on_progress(len(numbers))
        return HistoryMeans(vectors=vectors_Kd, histories=histories_K, num_items=num_items_K, num_cancelled=0)

    def _read(self, passes: Sequence[SharedPass], asked_K: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        most = max(len(one.numbers) for one in passes)
        cut_BK = np.zeros((len(passes), most), np.int64)
        asked_BK: list[list[Sequence[int]]] = []
        for row, one in enumerate(passes):
            cut_BK[row, : len(one.cuts)] = one.cuts
            asked_BK.append([asked_K[number] for number in one.numbers])
        packed = pack(
            padded_rows([one.history for one in passes]),
            cut_BK,
            instruction=self.towers.instruction,
            queries_BK=asked_BK,
        )
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            vectors: NDArray[np.float32] = self.towers.users(packed).float().cpu().numpy()
        return vectors

    def _forward_passes(
        self, passes: Sequence[SharedPass], asked_K: Sequence[Sequence[int]]
    ) -> Iterator[list[SharedPass]]:
        """Passes of like length together, as many as make up one forward pass; the longest first."""
        opening = len(self.towers.instruction)
        lengths = [
            opening + len(one.history) + sum(1 + len(asked_K[number]) for number in one.numbers) for one in passes
        ]
        order = sorted(range(len(passes)), key=lambda at: -lengths[at])
        start = 0
        while start < len(order):
            stop = start + max(1, TOKENS_AT_ONCE // lengths[order[start]])
            yield [passes[at] for at in order[start:stop]]
            start = stop

    def _query_tokens(self, queries: Sequence[str | None]) -> list[list[int]]:
        """What stands between history and [INT]; nothing where nothing is asked for."""
        lead = self._tokens(QUERY_LEAD)
        return [[*lead, *self._tokens(query)[:QUERY_TOKENS]] if query else [] for query in queries]

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def weights_sha256(self) -> str:
        """Hash of the shape and of every weight, whatever the file they lie in."""
        digest = hashlib.sha256(json.dumps(self._description(), sort_keys=True).encode())
        for name, weight in sorted(self.towers.state_dict().items()):
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Write the language model, the other weights and the shape into an empty folder, `karma.json` last."""
        folder.mkdir(parents=True, exist_ok=True)
        with quiet():
            self.towers.language_model.save_pretrained(folder / "language_model")
            self.tokenizer.save_pretrained(folder / "language_model")
        others = {
            name: weight.cpu()
            for name, weight in self.towers.state_dict().items()
            if not name.startswith("language_model.")
        }
        torch.save(others, folder / "network.pt")
        (folder / "karma.json").write_text(json.dumps(self._description(), indent=2))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote, to the GPU if there is one."""
        description = json.loads((folder / "karma.json").read_text())
        language_model, tokenizer = open_language_model(folder)
        image_dim = description["image_dim"]
        no_items = FrozenFeatures(
            np.empty((0, description["content_dim"]), np.float32),
            None if image_dim is None else np.empty((0, image_dim), np.float32),
        )
        towers = KarmaTowers(
            language_model, no_items, KarmaShape(**description["shape"]), instruction=description["instruction"]
        )
        missing, unknown = towers.load_state_dict(torch.load(folder / "network.pt", weights_only=True), strict=False)
        missing = [name for name in missing if not name.startswith("language_model.")]
        if missing or unknown:
            raise ValueError(
                f"{folder / 'network.pt'} lacks {len(missing)} weights and has {len(unknown)} of another network "
                f"({', '.join([*missing, *unknown][:3])}): it was saved by another version; fit the model again"
            )
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(towers.to(device), tokenizer, description["model_id"], description["precision"])

    def _description(self) -> dict[str, Any]:
        return {
            "model_id": self.model_id,
            "precision": self.precision,
            "content_dim": self.content_dim,
            "image_dim": self.image_dim,
            "instruction": list(self.towers.instruction),
            "shape": asdict(self.towers.shape),
        }

    @property
    def _device(self) -> torch.device:
        return self.towers.read_out_D.device

    def _take(self, content_NC: NDArray[np.float32], image_NV: NDArray[np.float32] | None) -> None:
        if content_NC.shape[1] != self.content_dim:
            raise ValueError(
                f"KARMA: this model was trained on text vectors {self.content_dim} wide, got {content_NC.shape[1]}. "
                "Fit it again on the vectors of the encoder in use (fit_embedder_karma)."
            )
        if image_NV is not None and image_NV.shape[1] != self.image_dim:
            raise ValueError(
                f"KARMA: this model was trained on image vectors {self.image_dim} wide, got {image_NV.shape[1]}. "
                "Fit it again (fit_embedder_karma)."
            )
        self.towers.features.frozen = FrozenFeatures(content_NC, image_NV)


class LanguageModel(NamedTuple):
    """A decoder without its output layer, and its tokenizer."""

    language_model: Any
    tokenizer: Any


def open_language_model(serving: Path) -> LanguageModel:
    """The language model of a saved `KarmaModel`, on the CPU."""
    folder = serving / "language_model"
    with quiet():
        return LanguageModel(
            AutoModel.from_pretrained(folder, local_files_only=True, dtype="auto").eval(),
            AutoTokenizer.from_pretrained(folder, local_files_only=True),
        )
