"""The torch ranker: ID network, optionally with LEARN's auxiliary networks, and ESMM heads."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, Self

import numpy as np
import torch

from ranker.auxiliary import AuxiliaryNetwork
from ranker.batches import Batch, EncodedExamples, ExampleLayout, VectorPair, batch_of, slices
from ranker.ctr_cvr import CtrCvrNetwork, Logits
from ranker.fit import FitSettings, fit_network, make_accelerator
from ranker.id_network import IdNetwork, ScalarStatistics
from ranker.losses import JOINT_AUXILIARY_WEIGHT, AuxiliaryLabel, ranker_loss
from ranker.ranker import FittedOn, Scores, TrainingCurve, Validate, Validation, Watch

PREDICTION_BATCH_SIZE = 8192


@dataclass(frozen=True)
class NetworkSettings:
    """What is built, beside what the examples decide."""

    auxiliary: Literal["none", "detached", "joint"] = "none"
    """LEARN's auxiliary networks, one a pair of vectors: absent, trained by their own loss only, or jointly."""
    auxiliary_label: AuxiliaryLabel = "converted"
    """What the auxiliary loss is about; a log without conversions needs `clicked`."""
    embedding_dim: int = 16
    cross_layers: int = 2
    hidden: tuple[int, ...] = (128, 64)
    attention_hidden: int = 32
    projected_dim: int = 32
    """Of vectors wider than 64, before the crosses."""
    dropout: float = 0.1
    id_dropout: float = 0.1
    """Share of training rows whose user or item reads as unknown."""
    modality_dropout: float = 0.1
    """Share of training rows whose context or item vector reads as missing."""


class NetworkRanker:
    """A `Ranker` made of a `CtrCvrNetwork`."""

    def __init__(self, settings: NetworkSettings | None = None, fit_settings: FitSettings | None = None) -> None:
        self.settings = settings or NetworkSettings()
        self.fit_settings = fit_settings or FitSettings()
        self.network: CtrCvrNetwork | None = None
        self.fitted_on: FittedOn | None = None

    def fit(
        self, train: EncodedExamples, validation: EncodedExamples, validate: Validate, watch: Watch | None = None
    ) -> TrainingCurve:
        """Train and keep the best validation's weights. See `ranker.fit.fit_network`."""
        settings = self.settings
        if (
            settings.auxiliary != "none"
            and settings.auxiliary_label == "converted"
            and not (train.converted_N == 1).any()
        ):
            raise ValueError(
                "fit: auxiliary_label is `converted`, but no training row is converted. "
                "Set auxiliary_label to `clicked`."
            )
        self.fitted_on = FittedOn.of(train)
        auxiliary_weight = JOINT_AUXILIARY_WEIGHT if settings.auxiliary == "joint" else 1.0

        def loss(logits: Logits, batch: Batch) -> torch.Tensor:
            return ranker_loss(
                logits, batch, auxiliary_label=settings.auxiliary_label, auxiliary_weight=auxiliary_weight
            )

        def validate_network() -> Validation:
            return validate(self.predict(validation))

        device = make_accelerator().device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.fit_settings.seed)
            self.network = _build(
                settings,
                train.layout,
                ScalarStatistics.of(train.scalars_NS, train.layout.scalar_roles),
                torch.from_numpy(train.item_attributes_IK),
                [_pair_inputs(train, pair) for pair in train.layout.vectors],
            )
            return fit_network(
                self.network,
                train,
                settings=self.fit_settings,
                loss=loss,
                validate=validate_network,
                watch=watch or Watch(),
            )

    @torch.inference_mode()
    def predict(self, examples: EncodedExamples) -> Scores:
        """Score impressions, in float64 from float32 logits.

        Raises:
            ValueError: not fitted, or examples with other columns, vocabularies or vectors than at training.
        """
        if self.network is None or self.fitted_on is None:
            raise ValueError("predict: this ranker is not fitted. Call fit, or NetworkRanker.load.")
        self.fitted_on.check(examples, "predict")
        self.network.eval()
        device = next(self.network.parameters()).device
        logits_2N = np.empty((2, len(examples)), dtype=np.float64)
        for part in slices(len(examples), PREDICTION_BATCH_SIZE):
            logits = self.network(batch_of(examples, part, device))
            logits_2N[0, part] = logits.ctr_B.float().cpu().numpy()
            logits_2N[1, part] = logits.cvr_B.float().cpu().numpy()
        p_ctr, p_cvr = torch.from_numpy(logits_2N).sigmoid().numpy()
        return Scores(p_ctr, p_cvr, p_ctr * p_cvr)

    def save(self, folder: Path) -> None:
        """Write weights, settings and what the ranker was trained on."""
        if self.network is None or self.fitted_on is None:
            raise ValueError("save: this ranker is not fitted. Call fit first.")
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({name: weight.cpu() for name, weight in self.network.state_dict().items()}, folder / "network.pt")
        description = {
            "kind": "network",
            "settings": asdict(self.settings),
            "fit_settings": asdict(self.fit_settings),
            **self.fitted_on.as_dict(),
        }
        (folder / "ranker.json").write_text(json.dumps(description, indent=2))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        description = json.loads((folder / "ranker.json").read_text())
        settings = NetworkSettings(**description["settings"])
        ranker = cls(replace(settings, hidden=tuple(settings.hidden)), FitSettings(**description["fit_settings"]))
        ranker.fitted_on = FittedOn.from_dict(description)
        weights = torch.load(folder / "network.pt", weights_only=True)
        statistics = ScalarStatistics(*(weights[f"id_network.scalars.{name}"] for name in ScalarStatistics._fields))
        layout, pairs = ranker.fitted_on.layout, []
        if settings.auxiliary != "none":
            names = [f"auxiliaries.{number}" for number in range(len(layout.vectors))]
            pairs = [
                PairInputs(len(weights[f"{each}.missing_context_V"]), *weights[f"{each}.seen_2"].tolist())
                for each in names
            ]
        ranker.network = _build(ranker.settings, layout, statistics, weights["id_network.item_attributes_IK"], pairs)
        ranker.network.load_state_dict(weights)
        ranker.network.eval()
        return ranker


class PairInputs(NamedTuple):
    """What the training rows say of one pair of vectors."""

    width: int
    context_seen: bool
    item_seen: bool


def _pair_inputs(train: EncodedExamples, pair: VectorPair) -> PairInputs:
    context, item = train.vectors[pair.context], train.vectors[pair.item]
    width, item_width = context.table_MV.shape[1], item.table_MV.shape[1]
    if width != item_width:
        raise ValueError(
            f"fit: {pair.context} is {width} wide and {pair.item} {item_width}. "
            "The auxiliary network multiplies them: both must come from one embedding space."
        )
    return PairInputs(width, bool((context.rows_N >= 0).any()), bool((item.rows_N >= 0).any()))


def _build(
    settings: NetworkSettings,
    layout: ExampleLayout,
    statistics: ScalarStatistics,
    item_attributes_IK: torch.Tensor,
    pairs: Sequence[PairInputs],
) -> CtrCvrNetwork:
    auxiliaries: list[AuxiliaryNetwork] = []
    if settings.auxiliary != "none":
        if not pairs:
            raise ValueError(
                "fit: the auxiliary network reads a user's or a query's vector and an item's, and the examples have "
                "none. "
                "Name a feature service that has both, or set auxiliary to `none`."
            )
        auxiliaries = [
            AuxiliaryNetwork(
                pair.width,
                projected_dim=settings.projected_dim,
                detach=settings.auxiliary == "detached",
                modality_dropout=settings.modality_dropout,
                context_seen=pair.context_seen,
                item_seen=pair.item_seen,
            )
            for pair in pairs
        ]
    id_network = IdNetwork(
        layout,
        statistics,
        item_attributes_IK,
        extra_width=sum(each.width for each in auxiliaries),
        embedding_dim=settings.embedding_dim,
        cross_layers=settings.cross_layers,
        hidden=settings.hidden,
        attention_hidden=settings.attention_hidden,
        dropout=settings.dropout,
        id_dropout=settings.id_dropout,
    )
    return CtrCvrNetwork(id_network, auxiliaries, dropout=settings.dropout)
