"""The students that `distill_relevance` left in the lake, as whoever scores with them finds them.

    fitted_students(lake)["representation"].load("explain").score([("red chair", "Acme chair. Furniture")])

A student is calibrated: its score is a probability, P = sigmoid(scale cos + bias) of a representation student. It reads
texts as `embedders.prompts` writes them: QUERY_TEXT of a query, PROMPTS["relevance"] of an item.
"""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from embedders.fingerprint import Fingerprint, check_same, sha256_of_files
from feature_repo.table_schemas import ItemRelevanceEmbeddings, QueryEmbeddings, StudentCurves
from jobs.lake import Lake

if TYPE_CHECKING:
    from embedders.mkd_model import MkdModel

MODELS = "embedders/mkd"
"""Folder of the lake: <digest>/<kind> for each student, and the checkpoints of those that are being trained."""

LEARNT_FROM_FILE = "learnt_from.parquet"
"""In the folder of a student: hashes of the pairs that it learnt from, was stopped by and calibrated on."""

Kind = Literal["interaction", "representation"]


class FittedStudent(NamedTuple):
    """A trained and calibrated student.

    Attributes:
        kind: reads pairs, or texts.
        fingerprint: identity of its scores, or of its vectors of queries and of items.
        labels_through: only pairs first shown before it taught it; None: of a lake without impressions.
        folder: of its files.
        files_sha256: what they hash to.
        scale: of P = sigmoid(scale cos + bias); None of an interaction student.
        bias: see there.
    """

    kind: Kind
    fingerprint: Fingerprint
    labels_through: datetime | None
    folder: Path
    files_sha256: str
    scale: float | None
    bias: float | None

    def is_whole(self) -> bool:
        """Whether the files are there, as they were written."""
        return self.folder.is_dir() and sha256_of_student(self.folder) == self.files_sha256

    def load(self, step: str) -> "MkdModel":
        """Read the model, in the number format of its fingerprint.

        Raises:
            ValueError: its files are gone or changed.
        """
        from embedders.mkd_model import MkdModel  # here: torch takes seconds to import

        if not self.is_whole():
            raise ValueError(
                f"{step}: the {self.kind} student that student_curves names is not in {self.folder}, or its files have "
                "changed.\n  what to do: restore the folder, or train it again: tailrank run distill_relevance --force"
            )
        return MkdModel.load(self.folder, precision="bfloat16" if self.fingerprint.dtype == "bfloat16" else "float32")


def fitted_students(lake: Lake) -> dict[Kind, FittedStudent]:
    """The students by kind; none where the lake does without relevance ([label_relevance] enabled = false).

    Raises:
        TableError: `distill_relevance` has not run.
    """
    found: dict[Kind, FittedStudent] = {}
    for kind, told in lake.manifest(StudentCurves).metadata.get("students", {}).items():
        through = told["labels_through"]
        found[kind] = FittedStudent(
            kind=kind,
            fingerprint=Fingerprint.from_tags(told["fingerprint"]),
            labels_through=None if through is None else datetime.fromisoformat(through),
            folder=lake.root / told["folder"],
            files_sha256=told["files_sha256"],
            scale=told["scale"],
            bias=told["bias"],
        )
    return found


def check_one_student(lake: Lake, step: str) -> None:
    """Make sure that vectors of queries and of items are of one student: of two, every cosine is noise.

    Raises:
        ValueError: they are of two; the message names both sides.
    """
    queries, items = (lake.manifest(schema).fingerprint for schema in (QueryEmbeddings, ItemRelevanceEmbeddings))
    check_same(queries, items, f"{step}, item_relevance_embeddings beside query_embeddings (run distill_relevance)")


def sha256_of_student(folder: Path) -> str:
    """Hash over the files of a student."""
    return sha256_of_files({str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()})
