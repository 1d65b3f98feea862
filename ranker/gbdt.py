"""LightGBM on the same examples: the baseline that a network must beat, and the quick check of a new feature.

Two boosters: p_ctr on every impression, p_cvr on the clicked ones whose outcome is known. `ranker.tree_inputs` says
what the trees read.

    N examples   Z tree inputs
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray

from ranker.batches import UNKNOWN_LABEL, EncodedExamples, VectorPair
from ranker.losses import cross_entropy
from ranker.ranker import CurveRow, FittedOn, Scores, TrainingCurve, Validate, Validation, Watch
from ranker.tree_inputs import PairAxes, PrincipalAxes, TreeInputs

CTR_TREES, CVR_TREES, PRINCIPAL_AXES = "ctr_trees.txt", "cvr_trees.txt", "principal_axes.npz"


@dataclass(frozen=True)
class GbdtSettings:
    """How the trees grow."""

    num_rounds: int = 500
    """Most boosting rounds."""
    rounds_per_evaluation: int = 20
    """Rounds between two validations."""
    patience: int = 3
    """Validations without a better one before boosting stops."""
    learning_rate: float = 0.05
    num_leaves: int = 31
    min_rows_in_leaf: int = 50
    row_share: float = 0.8
    """Of the rows, drawn anew for each tree."""
    column_share: float = 0.8
    """Of the inputs, drawn anew for each tree."""
    num_components: int = 8
    """Principal components of the context's and of the item's vectors, for each pair."""
    seed: int = 0
    num_threads: int = 0
    """0 means every core; the trees are the same whatever it is."""


class _Grown(NamedTuple):
    """Trees up to the best validation."""

    trees: lgb.Booster
    curve: TrainingCurve


class GbdtRanker:
    """A `Ranker` made of two LightGBM boosters."""

    def __init__(self, settings: GbdtSettings | None = None) -> None:
        self.settings = settings or GbdtSettings()
        self.fitted_on: FittedOn | None = None
        self.inputs: TreeInputs | None = None
        self.ctr_trees: lgb.Booster | None = None
        self.cvr_trees: lgb.Booster | None = None
        """None where the training rows hold one outcome only: p_cvr is `cvr_prior` then."""
        self.cvr_prior = 0.0

    def fit(
        self, train: EncodedExamples, validation: EncodedExamples, validate: Validate, watch: Watch | None = None
    ) -> TrainingCurve:
        """Grow the conversion trees, then the click trees; the curve is the click trees'.

        There is nothing to resume: growing starts again from the first tree.

        Raises:
            ValueError: no training rows.
        """
        if len(train) == 0:
            raise ValueError("fit: no training rows. Widen the train window of the split.")
        self.fitted_on = FittedOn.of(train)
        self.inputs = TreeInputs.fit(train, self.settings.num_components)
        train_NZ, validation_NZ = self.inputs.matrix(train), self.inputs.matrix(validation)
        self._fit_conversions(train, train_NZ, validation, validation_NZ)
        p_cvr_N = self._p_cvr(validation_NZ)
        clicks = self._grow(
            train_NZ,
            train.clicked_N,
            validation_NZ,
            judge=lambda p_ctr_N: validate(Scores(p_ctr_N, p_cvr_N, p_ctr_N * p_cvr_N)),
            watch=watch or Watch(),
        )
        self.ctr_trees = clicks.trees
        return clicks.curve

    def predict(self, examples: EncodedExamples) -> Scores:
        """Score impressions.

        Raises:
            ValueError: not fitted, or examples with other columns, vocabularies or vectors than at training.
        """
        if self.ctr_trees is None or self.fitted_on is None or self.inputs is None:
            raise ValueError("predict: this ranker is not fitted. Call fit, or GbdtRanker.load.")
        self.fitted_on.check(examples, "predict")
        inputs_NZ = self.inputs.matrix(examples)
        p_ctr_N, p_cvr_N = _probability(self.ctr_trees, inputs_NZ), self._p_cvr(inputs_NZ)
        return Scores(p_ctr_N, p_cvr_N, p_ctr_N * p_cvr_N)

    def save(self, folder: Path) -> None:
        """Write the trees, the settings and what the ranker was trained on."""
        if self.ctr_trees is None or self.fitted_on is None or self.inputs is None:
            raise ValueError("save: this ranker is not fitted. Call fit first.")
        folder.mkdir(parents=True, exist_ok=True)
        self.ctr_trees.save_model(folder / CTR_TREES)
        if self.cvr_trees is not None:
            self.cvr_trees.save_model(folder / CVR_TREES)
        axes = {
            f"{pair.name}_{side}_{part}": array
            for pair, pair_axes in zip(self.fitted_on.layout.vectors, self.inputs.principal, strict=True)
            for side, side_axes in pair_axes._asdict().items()
            for part, array in side_axes._asdict().items()
        }
        np.savez(folder / PRINCIPAL_AXES, **axes)
        description = {
            "kind": "gbdt",
            "settings": asdict(self.settings),
            "cvr_prior": self.cvr_prior,
            "has_cvr_trees": self.cvr_trees is not None,
            **self.fitted_on.as_dict(),
        }
        (folder / "ranker.json").write_text(json.dumps(description, indent=2))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        description = json.loads((folder / "ranker.json").read_text())
        ranker = cls(GbdtSettings(**description["settings"]))
        ranker.fitted_on = FittedOn.from_dict(description)
        ranker.ctr_trees = lgb.Booster(model_file=folder / CTR_TREES)
        ranker.cvr_prior = description["cvr_prior"]
        if description["has_cvr_trees"]:
            ranker.cvr_trees = lgb.Booster(model_file=folder / CVR_TREES)
        layout = ranker.fitted_on.layout
        with np.load(folder / PRINCIPAL_AXES) as arrays:

            def axes(pair: VectorPair, side: str) -> PrincipalAxes:
                return PrincipalAxes(*(arrays[f"{pair.name}_{side}_{part}"] for part in PrincipalAxes._fields))

            principal = [PairAxes(*(axes(pair, side) for side in PairAxes._fields)) for pair in layout.vectors]
        ranker.inputs = TreeInputs(layout, principal)
        return ranker

    def _fit_conversions(
        self,
        train: EncodedExamples,
        train_NZ: NDArray[np.float32],
        validation: EncodedExamples,
        validation_NZ: NDArray[np.float32],
    ) -> None:
        rows, converted = _clicked_with_outcome(train)
        # as if half a conversion and half a refusal had been seen, too: no log proves a probability of 0 or 1
        self.cvr_prior = float((converted.sum() + 0.5) / (len(converted) + 1.0))
        self.cvr_trees = None
        if converted.any() and not converted.all():
            judged_rows, judged_converted = _clicked_with_outcome(validation)
            self.cvr_trees = self._grow(
                train_NZ[rows],
                converted,
                validation_NZ[judged_rows],
                judge=lambda p_cvr_N: Validation(cross_entropy(p_cvr_N, judged_converted), None),
                watch=Watch(),
            ).trees

    def _p_cvr(self, inputs_NZ: NDArray[np.float32]) -> NDArray[np.float64]:
        if self.cvr_trees is None:
            return np.full(len(inputs_NZ), self.cvr_prior)
        return _probability(self.cvr_trees, inputs_NZ)

    def _grow(
        self,
        train_NZ: NDArray[np.float32],
        label_N: NDArray[np.bool_],
        validation_NZ: NDArray[np.float32],
        *,
        judge: Callable[[NDArray[np.float64]], Validation],
        watch: Watch,
    ) -> _Grown:
        """Add trees while the judge likes the validation scores better, and keep the number it liked best.

        Without validation rows (no outcome is known there yet) the first evaluation's trees are kept: few, but safe.
        """
        assert self.inputs is not None
        settings = self.settings
        dataset = lgb.Dataset(
            train_NZ,
            label_N,
            feature_name=self.inputs.names,
            categorical_feature=self.inputs.categoricals,
            params={"verbose": -1},
        )
        trees = lgb.Booster(self._parameters(), dataset)
        raw_N = np.zeros(len(validation_NZ))
        curve: list[CurveRow] = []
        best_merit, best_epoch, rounds = -np.inf, 0, 0
        while rounds < settings.num_rounds and len(curve) - best_epoch <= settings.patience:
            started = time.perf_counter()
            new_rounds = min(settings.rounds_per_evaluation, settings.num_rounds - rounds)
            for _ in range(new_rounds):
                trees.update()
                watch.on_rows(len(label_N))
            train_loss = float(trees.eval_train()[0][2])
            found = Validation(0.0, None)
            if len(validation_NZ):
                # raw scores of trees add up, so only the new trees are asked
                raw_N += trees.predict(validation_NZ, start_iteration=rounds, num_iteration=new_rounds, raw_score=True)
                found = judge(_sigmoid(raw_N))
            if found.merit > best_merit:
                best_merit, best_epoch = found.merit, len(curve)
            rounds += new_rounds
            seconds = time.perf_counter() - started
            curve.append(CurveRow(len(curve), train_loss, found.loss, found.uauc, seconds, is_best=False))
        best_rounds = min((best_epoch + 1) * settings.rounds_per_evaluation, settings.num_rounds)
        # through text: the trees without their training data, and the very trees that a saved ranker will load
        kept = lgb.Booster(model_str=trees.model_to_string(num_iteration=best_rounds))
        return _Grown(kept, tuple(row._replace(is_best=row.epoch == best_epoch) for row in curve))

    def _parameters(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "objective": "binary",
            "metric": "binary_logloss",
            "learning_rate": settings.learning_rate,
            "num_leaves": settings.num_leaves,
            "min_data_in_leaf": settings.min_rows_in_leaf,
            "bagging_fraction": settings.row_share,
            "bagging_freq": 1,
            "feature_fraction": settings.column_share,
            "seed": settings.seed,
            "num_threads": settings.num_threads,
            "deterministic": True,
            "force_row_wise": True,
            "verbose": -1,
        }


def _clicked_with_outcome(examples: EncodedExamples) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Mask of the clicked rows whose outcome is known `[N]`, and their outcomes."""
    rows_N = examples.clicked_N & (examples.converted_N != UNKNOWN_LABEL)
    return rows_N, examples.converted_N[rows_N] == 1


def _probability(trees: lgb.Booster, inputs_NZ: NDArray[np.float32]) -> NDArray[np.float64]:
    if len(inputs_NZ) == 0:
        return np.empty(0)
    return _sigmoid(np.asarray(trees.predict(inputs_NZ, raw_score=True), dtype=np.float64))


def _sigmoid(raw_N: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1.0 / (1.0 + np.exp(-raw_N))
