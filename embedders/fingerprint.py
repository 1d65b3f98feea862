"""Identity of an embedding model: vectors may be compared only where all of it is equal.

Two encoders of one width give vectors that look alike and mean nothing to each other; so does one encoder under two
prompts. A fingerprint travels with every table, feature, checkpoint and exported graph, and whoever reads vectors
compares it with the one expected (`check_same`).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path

NEVER_TRAINED_HERE = "frozen"
"""Tag of `trained_through` where no interaction was learnt from."""


@dataclass(frozen=True)
class Fingerprint:
    """What must be equal for two vectors to live in one space.

    Attributes:
        model_id: the name people use, e.g. `minilm`; not the folder's path, which differs between machines.
        weights_sha256: hash over the weight files and the model's configuration.
        tokenizer_sha256: hash over the tokenizer's files.
        prompt: version of the text template, e.g. `learn_v1`.
        pooling: how token states become one vector, and how many tokens are read.
        dimension: width of the vectors.
        normalisation: `l2`, or `none`.
        dtype: number format of the forward pass, e.g. `float32`. Vectors are stored as float32 whatever it is.
        trained_through: ISO time of the last interaction that was learnt from; None for a frozen encoder.
    """

    model_id: str
    weights_sha256: str
    tokenizer_sha256: str
    prompt: str
    pooling: str
    dimension: int
    normalisation: str
    dtype: str
    trained_through: str | None = None

    def as_tags(self) -> dict[str, str]:
        """As flat strings: for manifests, `Field.tags`, checkpoints."""
        return {name: NEVER_TRAINED_HERE if value is None else str(value) for name, value in asdict(self).items()}

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> "Fingerprint":
        """The inverse of `as_tags`; other tags are left aside.

        Raises:
            KeyError: a part of the fingerprint is missing.
        """
        missing = [field.name for field in fields(cls) if field.name not in tags]
        if missing:
            raise KeyError(f"fingerprint without {', '.join(missing)} (found: {', '.join(tags) or 'no tags'})")
        trained_through = tags["trained_through"]
        return cls(
            model_id=tags["model_id"],
            weights_sha256=tags["weights_sha256"],
            tokenizer_sha256=tags["tokenizer_sha256"],
            prompt=tags["prompt"],
            pooling=tags["pooling"],
            dimension=int(tags["dimension"]),
            normalisation=tags["normalisation"],
            dtype=tags["dtype"],
            trained_through=None if trained_through == NEVER_TRAINED_HERE else trained_through,
        )

    def digest(self) -> str:
        """SHA-256 over all parts: 64 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.as_tags(), sort_keys=True).encode()).hexdigest()

    def of_mean_of_history(self) -> "Fingerprint":
        """Identity of a mean of such vectors: the same space, reached by another road."""
        return replace(self, pooling=f"{self.pooling}, then mean of history")

    def of_learn(self, *, weights_sha256: str, dimension: int, trained_through: str) -> "Fingerprint":
        """Identity of the vectors that LEARN's towers make of content vectors with this identity.

        Users and items share it: they are there to be compared. What reads text is carried over, and all of the content
        encoder is named by its digest, so the same weights over another encoder are another model.

        Args:
            weights_sha256: hash of the trained network.
            dimension: its output width.
            trained_through: ISO time before which it has seen the interactions.
        """
        return Fingerprint(
            model_id="learn",
            weights_sha256=weights_sha256,
            tokenizer_sha256=self.tokenizer_sha256,
            prompt=self.prompt,
            pooling=f"causal PAL, last position, over {self.model_id} {self.digest()}",
            dimension=dimension,
            normalisation="l2",
            dtype="float32",
            trained_through=trained_through,
        )

    def of_karma(
        self,
        images: "Fingerprint | None",
        *,
        weights_sha256: str,
        dimension: int,
        trained_through: str,
        dtype: str = "float32",
    ) -> "Fingerprint":
        """Identity of the vectors that KARMA makes of content vectors with this identity, and of image vectors.

        Users and items share it. Both frozen encoders are named by their digests: what they say is all that the model
        knows of an item. Its language model and that one's tokenizer are among the weights.

        Args:
            images: identity of the image vectors; None where it has learnt without any.
            weights_sha256: hash of the trained network, as it serves.
            dimension: its output width.
            trained_through: ISO time before which it has seen the interactions.
            dtype: of its language model's forward pass.
        """
        pictures = "no images" if images is None else f"images of {images.model_id} {images.digest()}"
        return Fingerprint(
            model_id="karma",
            weights_sha256=weights_sha256,
            tokenizer_sha256=self.tokenizer_sha256,
            prompt=self.prompt,
            pooling=f"language model, read out at [INT], over {self.model_id} {self.digest()} and {pictures}",
            dimension=dimension,
            normalisation="l2",
            dtype=dtype,
            trained_through=trained_through,
        )

    def __str__(self) -> str:
        return f"{self.model_id} ({self.prompt}, {self.dimension} wide, {self.dtype}, {self.digest()[:12]})"


def check_same(expected: Fingerprint | Mapping[str, str], found: Fingerprint | Mapping[str, str], where: str) -> None:
    """Stop where vectors of two models would meet.

    Args:
        expected: the model that the reader was made for.
        found: the model that the vectors at hand came from.
        where: who asks and of what, e.g. "train_ranker, item_content_embeddings".

    Raises:
        ValueError: any part differs; the message gives both sides of each part that does.
    """
    expected_tags = expected.as_tags() if isinstance(expected, Fingerprint) else dict(expected)
    found_tags = found.as_tags() if isinstance(found, Fingerprint) else dict(found)
    if expected_tags == found_tags:
        return
    names = sorted(expected_tags.keys() | found_tags.keys())
    differences = [
        f"    {name}: expected {expected_tags.get(name, 'nothing')}, found {found_tags.get(name, 'nothing')}"
        for name in names
        if expected_tags.get(name) != found_tags.get(name)
    ]
    raise ValueError(
        "\n".join([f"{where}: the vectors come from another embedding model than expected.", *differences])
        + "\n  what to do: embed again with the model expected, or rebuild what was made with the other one"
    )


def sha256_of_files(files: Mapping[str, Path]) -> str:
    """One hash over several files and the names they go by (not over the folder they lie in)."""
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        status = path.stat()
        digest.update(f"{name} {_sha256_of_file(path, status.st_size, status.st_mtime_ns)}\n".encode())
    return digest.hexdigest()


@lru_cache(maxsize=256)
def _sha256_of_file(path: Path, size: int, mtime_ns: int) -> str:
    """Size and time of change are there for the cache: a file that was replaced is read again."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
