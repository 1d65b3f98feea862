"""A trained student as the jobs use it: pairs of texts in, scores out; texts in, vectors out; and a folder to keep it.

The folder holds `encoder/`, an ordinary Hugging Face folder; `label_head.pt` of a cross-encoder; and `mkd.json`.
Nothing that only training needs is in it. The vectors of a bi-encoder are the masked mean of its last layer, so
`load_backbone(folder / "encoder")` gives the same ones, and any pair can be scored as kappa cos + b.

Scores are the student's own, in [0, 1]. Calibrating them on held-out labels is the caller's.

Letters: N pairs or texts, K labels, D width.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedders.fingerprint import Fingerprint, sha256_of_files
from embedders.mkd import InteractionStudent, RepresentationStudent, Student, encoder_width
from embedders.mkd_losses import expected_score, log_odds
from embedders.model_files import find_model_files
from embedders.pooling import batches_by_length
from embedders.student_encoder import TokenLists, load_encoder, save_encoder

TOKENS_PER_PASS_ON_CPU = 2048
"""More no longer fit into the caches."""
TEXTS_PER_PASS = 256

FORMAT = 1

Progress = Callable[[int], None]


class MkdModel:
    """A student without its reasoning heads, in eval mode.

    Args:
        student: of either kind; its weights are shared, not copied.
        precision: of the encoder. auto: bfloat16 on a GPU, float32 on a CPU.
    """

    def __init__(self, student: Student, *, precision: Literal["auto", "float32", "bfloat16"] = "auto") -> None:
        self.student: Student = student.for_serving()
        self.device = next(student.parameters()).device
        self.dtype: Literal["float32", "bfloat16"] = (
            ("bfloat16" if self.device.type == "cuda" else "float32") if precision == "auto" else precision
        )

    @property
    def kind(self) -> Literal["interaction", "representation"]:
        """Which of the two."""
        return "interaction" if isinstance(self.student, InteractionStudent) else "representation"

    @property
    def kappa(self) -> float:
        """Of s = kappa cos + b."""
        return float(self._bi_encoder("kappa").log_kappa.detach().exp())

    @property
    def bias(self) -> float:
        """b of s = kappa cos + b."""
        return float(self._bi_encoder("bias").bias.detach())

    def score(self, pairs: Sequence[tuple[str, str]], *, on_progress: Progress | None = None) -> NDArray[np.float32]:
        """Relevance of each (query, item) in [0, 1]: the expected label, for two labels the probability of good. [N]"""
        if isinstance(self.student, InteractionStudent):
            return expected_score(torch.from_numpy(self.probabilities(pairs, on_progress=on_progress))).numpy()
        return torch.sigmoid(torch.from_numpy(self.log_odds(pairs, on_progress=on_progress))).numpy()

    def log_odds(self, pairs: Sequence[tuple[str, str]], *, on_progress: Progress | None = None) -> NDArray[np.float32]:
        """The same before it is squeezed into [0, 1]: what to calibrate, and what does not saturate. [N]"""
        if isinstance(self.student, InteractionStudent):
            return log_odds(torch.from_numpy(self._logits(pairs, on_progress))).numpy()
        queries = list(dict.fromkeys(query for query, _ in pairs))
        items = list(dict.fromkeys(item for _, item in pairs))
        query_at = {text: row for row, text in enumerate(queries)}
        item_at = {text: row for row, text in enumerate(items)}
        query_vectors = self.embed_queries(queries)[[query_at[query] for query, _ in pairs]]
        item_vectors = self.embed_items(items)[[item_at[item] for _, item in pairs]]
        if on_progress and pairs:
            on_progress(len(pairs))
        return self.log_odds_of_vectors(query_vectors, item_vectors)

    def log_odds_of_vectors(self, query_ND: NDArray[np.float32], item_ND: NDArray[np.float32]) -> NDArray[np.float32]:
        """kappa cos + b of vectors that were embedded before, row by row. [N]"""
        cosine_N = np.einsum("nd,nd->n", query_ND, item_ND, dtype=np.float32)
        return (np.float32(self.kappa) * cosine_N + np.float32(self.bias)).astype(np.float32)

    def probabilities(
        self, pairs: Sequence[tuple[str, str]], *, on_progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """Distribution over the labels of each (query, item); of a cross-encoder only. [N, K]"""
        return torch.softmax(torch.from_numpy(self._logits(pairs, on_progress)), dim=1).numpy()

    def embed_queries(self, texts: Sequence[str], *, on_progress: Progress | None = None) -> NDArray[np.float32]:
        """Vectors [N, D] float32, unit norm, in the order of the texts; of a bi-encoder only."""
        student = self._bi_encoder("embed_queries")
        distinct = list(dict.fromkeys(texts))  # equal ones are read once
        row_of = {text: row for row, text in enumerate(distinct)}
        vectors = np.empty((len(distinct), encoder_width(student.encoder)), np.float32)
        lists = student.reader.texts(distinct)
        times_wanted = np.bincount([row_of[text] for text in texts], minlength=len(distinct))
        self._fill(vectors, lists, lambda rows: on_progress(int(times_wanted[rows].sum())) if on_progress else None)
        return vectors[[row_of[text] for text in texts]]

    def embed_items(self, texts: Sequence[str], *, on_progress: Progress | None = None) -> NDArray[np.float32]:
        """The same of items: one encoder reads both sides."""
        return self.embed_queries(texts, on_progress=on_progress)

    def weights_sha256(self) -> str:
        """Hash of every weight that is served, whatever the file they lie in."""
        digest = hashlib.sha256(json.dumps(self._described(), sort_keys=True).encode())
        for name, weight in sorted(self.student.state_dict().items()):
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def fingerprint(self, *, folder: Path, prompt: str, trained_through: str | None) -> Fingerprint:
        """Identity of the vectors (of a cross-encoder: of the scores).

        Args:
            folder: where the model lies: its tokenizer's files are read.
            prompt: version of the template that writes the texts of queries and items.
            trained_through: ISO time of the last label or teacher's answer that it has seen.
        """
        is_pair = self.kind == "interaction"
        reads = f"{self.student.reader.max_tokens} tokens"
        return Fingerprint(
            model_id=f"mkd_{self.kind}",
            weights_sha256=self.weights_sha256(),
            tokenizer_sha256=sha256_of_files(find_model_files(str(folder / "encoder")).tokenizer),
            prompt=prompt,
            pooling=f"score of the pair, {reads}" if is_pair else f"masked mean of the last layer, {reads}",
            dimension=1 if is_pair else encoder_width(self.student.encoder),
            normalisation="none" if is_pair else "l2",
            dtype=self.dtype,
            trained_through=trained_through,
        )

    def save(self, folder: Path) -> None:
        """Write what serving needs, `mkd.json` last: a reader that finds it finds all."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "mkd.json").unlink(missing_ok=True)
        save_encoder(self.student.encoder, self.student.reader, folder / "encoder")
        if isinstance(self.student, InteractionStudent):
            torch.save(
                {name: weight.detach().cpu() for name, weight in self.student.label_head.state_dict().items()},
                folder / "label_head.pt",
            )
        (folder / "mkd.json").write_text(json.dumps(self._described(), indent=1))

    @classmethod
    def load(
        cls, folder: Path, *, device: str | None = None, precision: Literal["auto", "float32", "bfloat16"] = "auto"
    ) -> Self:
        """Read what `save` wrote.

        Args:
            folder: of `save`.
            device: a torch device; default is the GPU where there is one.
            precision: of the encoder.

        Raises:
            ValueError: there is no student here, or one of another format.
        """
        if not (folder / "mkd.json").is_file():
            raise ValueError(f"{folder} holds no student (no mkd.json): train one, or look for where it was saved")
        told = json.loads((folder / "mkd.json").read_text())
        if told.get("format") != FORMAT:
            raise ValueError(f"{folder}: mkd.json is of format {told.get('format')}, expected {FORMAT}: train it again")
        encoder, reader = load_encoder(str(folder / "encoder"), max_tokens=told["max_tokens"])
        student: Student
        if told["kind"] == "interaction":
            student = InteractionStudent(
                encoder, reader, num_labels=told["num_labels"], num_steps=0, pooling=told["pooling"]
            )
            student.label_head.load_state_dict(torch.load(folder / "label_head.pt", weights_only=True))
        else:
            student = RepresentationStudent(encoder, reader)
            with torch.no_grad():
                student.log_kappa.fill_(told["log_kappa"])
                student.bias.fill_(told["bias"])
        return cls(student.to(device or ("cuda" if torch.cuda.is_available() else "cpu")), precision=precision)

    def _described(self) -> dict[str, Any]:
        told: dict[str, Any] = {"format": FORMAT, "kind": self.kind, "max_tokens": self.student.reader.max_tokens}
        if isinstance(self.student, InteractionStudent):
            return told | {"num_labels": self.student.label_head.out_features, "pooling": self.student.pooling}
        return told | {"log_kappa": self.student.log_kappa.item(), "bias": self.student.bias.item()}

    def _logits(self, pairs: Sequence[tuple[str, str]], on_progress: Progress | None) -> NDArray[np.float32]:
        if not isinstance(self.student, InteractionStudent):
            raise TypeError("a representation student has no distribution over labels; ask for score or log_odds")
        logits_NK = np.empty((len(pairs), self.student.label_head.out_features), np.float32)
        lists = self.student.reader.pairs(pairs)
        self._fill(logits_NK, lists, lambda rows: on_progress(len(rows)) if on_progress else None)
        return logits_NK

    @torch.inference_mode()
    def _fill(
        self, rows_out: NDArray[np.float32], lists: TokenLists, told: Callable[[NDArray[np.int64]], None]
    ) -> None:
        """Run all texts through the student, those of like length together."""
        most = TOKENS_PER_PASS_ON_CPU if self.device.type == "cpu" else None
        if not len(rows_out):
            return
        for rows in batches_by_length(lists.lengths(), TEXTS_PER_PASS, most):
            ids_NL, mask_NL, segment_NL = self.student.reader.padded(lists, rows).to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bfloat16"):
                found: Tensor = (
                    self.student(ids_NL, mask_NL, segment_NL)
                    if isinstance(self.student, InteractionStudent)
                    else self.student(ids_NL, mask_NL)
                )
            rows_out[rows] = found.float().cpu().numpy()
            told(rows)

    def _bi_encoder(self, what: str) -> RepresentationStudent:
        if not isinstance(self.student, RepresentationStudent):
            raise TypeError(f"{what}: an interaction student reads pairs; only a representation student has vectors")
        return self.student
