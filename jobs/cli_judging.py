"""The commands that judge rankers: evaluate, gate, ablate; and recalibrate, which acts on what evaluate says."""

import logging
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.cli_options import ConfigOption, LakeOption, SetOption, fail, read_settings
from jobs.lake import Lake

CANNOT_JUDGE = 3
"""Exit code of the gate where no decision could be made."""

logger = logging.getLogger(__name__)

SegmentOption = Annotated[
    list[str] | None,
    typer.Option("--segment", metavar="COLUMN", help="A further column to judge by; may be given several times."),
]


class Metric(StrEnum):
    """What the gate decides on."""

    uauc = "uauc"
    wuauc = "wuauc"
    auc = "auc"


class CalibrationMethod(StrEnum):
    """How probabilities are mended."""

    platt = "platt"
    isotonic = "isotonic"


class Label(StrEnum):
    """Which outcome."""

    clicked = "clicked"
    converted = "converted"
    clicked_and_converted = "clicked_and_converted"


def evaluate(
    predictions: Annotated[
        Path, typer.Argument(metavar="FILE", help="Parquet or CSV: one row per impression.", show_default=False)
    ],
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Another model's predictions for the same impressions, to compare with."),
    ] = None,
    segment: SegmentOption = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Add what other public definitions of AUC by user give, and what ties do.")
    ] = False,
    calibrate_on: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Its predictions on the validation split: mend the probabilities there, judge them here.",
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one self-contained HTML file here.")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all numbers here, for machines.")] = None,
    parquet: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Write the tables here, as parquet.")] = None,
    draws: Annotated[int, typer.Option(min=100, metavar="N", help="Bootstrap draws of users.")] = 1000,
) -> None:
    """Judge anyone's predictions: AUC, UAUC and WUAUC with intervals, by segment, against a baseline.

    Columns: impression_id, user_id, item_id, event_timestamp, clicked, p_ctr; optional: converted, p_cvr, p_ctcvr,
    user_segment, item_segment.

    Example: `tailrank evaluate new.parquet --baseline old.parquet --segment country --explain --report new.html`
    """
    from jobs import evaluate_predictions

    evaluate_predictions.run(
        predictions,
        baseline=baseline,
        report=report,
        json=json,
        segments=segment or (),
        calibrate_on=calibrate_on,
        parquet=parquet,
        explain=explain,
        num_draws=draws,
    )


def recalibrate(
    predictions: Annotated[Path, typer.Argument(metavar="FILE", help="Predictions to mend.", show_default=False)],
    calibrate_on: Annotated[
        Path,
        typer.Option(metavar="FILE", help="The same model's predictions on the validation split.", show_default=False),
    ],
    to: Annotated[Path, typer.Option(metavar="FILE", help="Parquet file to write.", show_default=False)],
    method: Annotated[
        CalibrationMethod, typer.Option(metavar="METHOD", help="platt keeps the order of scores; isotonic makes ties.")
    ] = CalibrationMethod.platt,
) -> None:
    """Mend the probabilities of a file of predictions by what came of others, and write the file again.

    `tailrank evaluate --calibrate-on` says beforehand what that would change.
    """
    from jobs import recalibrate_file

    recalibrate_file.recalibrate_file(predictions, calibrate_on, to, method=method.value)


def gate(
    context: typer.Context,
    new: Annotated[
        str,
        typer.Argument(
            metavar="NEW", help="Predictions of the new ranker; with --lake, the ranker's name.", show_default=False
        ),
    ],
    against: Annotated[
        str, typer.Option(metavar="OLD", help="Those of the ranker in use; with --lake, its name.", show_default=False)
    ],
    protect: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SEGMENT",
            help="Where a loss is not allowed: item:cold_start, user:long_tail or COLUMN:VALUE; may be given several "
            "times. Without any, only the overall gain counts.",
        ),
    ] = None,
    lake: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Judge two rankers that this lake has predictions of, all their seeds."),
    ] = None,
    epsilon: Annotated[
        float,
        typer.Option(min=0.0, metavar="LOSS", help="The loss allowed in a protected segment, on the metric's scale."),
    ] = 0.002,
    metric: Annotated[Metric, typer.Option(metavar="METRIC", help="uauc, wuauc or auc.")] = Metric.uauc,
    label: Annotated[
        Label, typer.Option(metavar="OUTCOME", help="clicked, converted or clicked_and_converted.")
    ] = Label.clicked,
    segment: SegmentOption = None,
    allow_unknown: Annotated[
        bool, typer.Option("--allow-unknown", help="Let a protected segment pass that is too small to tell.")
    ] = False,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the decision here, for machines.")] = None,
) -> None:
    """Promote a ranker? Only if it is better overall and no protected segment can have lost more than epsilon.

    Better: the 95% interval of the paired gain lies above zero. Protected: that of the segment's gain ends no lower
    than -epsilon, so a segment with too little data is a reason to refuse.

    Exit codes: **0** promote, **1** do not, **2** the command is wrong, **3** the data cannot be judged. Only 0 and 1
    are decisions.

    Examples:

    `tailrank gate new.parquet --against old.parquet --protect item:cold_start --protect user:cold_start`

    `tailrank gate learn --against base --lake lake --protect item:others --json decision.json`
    """
    if json is not None and json.suffix != ".json":
        fail(f"--json writes {json}; expected a name that ends in .json", code=2)
    from jobs import gate as promotion_gate

    try:
        protected = [promotion_gate.protected_segment(text) for text in protect or ()]
    except ValueError as error:
        fail(f"--protect {error}", code=2)
    try:
        decision = promotion_gate.run(
            new,
            against,
            lake=Lake(lake) if lake is not None else None,
            protect=protected,
            segment_kinds=segment or (),
            epsilon=epsilon,
            metric=metric.value,
            label=label.value,
            allow_unknown=allow_unknown,
            json=json,
        )
    except (ValueError, TypeError, KeyError, OSError) as error:
        logger.debug("where it happened", exc_info=error)
        message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        fail(f"no decision was made: {message}", code=CANNOT_JUDGE)
    except Exception as error:  # Python would exit with 1, which says that the ranker was refused
        logger.error("the gate broke", exc_info=error)
        fail(f"no decision was made: {error!r}", code=CANNOT_JUDGE)
    context.exit(promotion_gate.PROMOTED if decision.promote else promotion_gate.REFUSED)


def ablate(
    config: ConfigOption = None,
    lake: LakeOption = None,
    settings: SetOption = None,
    ranker: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Which ranker; may be given several times.  [default: the richest]"),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD",
            help="permuted (no training) or retrained; may be given several times.  [default: permuted]",
        ),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Only this group of features; may be given several times.  [default: all of the ranker]",
        ),
    ] = None,
    seeds: Annotated[
        list[int] | None,
        typer.Option(
            "--seed", metavar="N", help="Only this training seed; may be given several times.  [default: all]"
        ),
    ] = None,
) -> None:
    """Measure what each group of features is worth to a ranker, by segment, and what it costs.

    `permuted` shuffles the group within each user and scores again; `retrained` trains the ranker without the group.
    The next `tailrank run evaluate_ranker` shows the result in the report.
    """
    from jobs import ablate_features

    chosen = read_settings(config, lake, settings)
    unknown = [name for name in method or () if name not in ablate_features.METHODS]
    if unknown:
        fail(f"there is no method {unknown[0]!r}; the methods are {', '.join(ablate_features.METHODS)}", code=2)
    train: Any = chosen.steps["train_ranker"]
    judge: Any = chosen.steps["evaluate_ranker"]
    ablate_features.run(
        Lake(chosen.lake_path),
        train,
        judge,
        rankers=ranker or (),
        methods=method or ("permuted",),
        groups=group,
        seeds=seeds,
    )
