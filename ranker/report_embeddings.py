"""The section of the report on embedding models: how they were trained, and whether that made them collapse."""

from collections.abc import Sequence
from dataclasses import dataclass

import dataframely as dy
import polars as pl
from markupsafe import Markup

from feature_repo.table_schemas import EmbedderCurves, KarmaAttention, KarmaCurves, LearnAttention
from ranker import attention_charts, embedding_health_charts, embedding_tables
from ranker.printed_table import PrintedTable

SAID = {
    "validation_recall": "Recall: of held-out items, among those nearest to their user.",
    "title_similarity": "Likeness: words that the titles of the 50 nearest items share with the title of the item "
    "wanted, over all words of both.",
    "effective_rank": "Directions: in how many of them user vectors spread; a collapse leaves few.",
    "top1_mass": "Heaviest positions: share of attention on one position, and on four; a collapse raises it.",
    "title_perplexity": "Perplexity: of titles to the language model by itself; where it rises, the model unlearns to "
    "speak.",
}
"""What a chart means, by a column that it shows."""

STAGES = {
    "titles": "first the language model learns to read items, and to say their titles",
    "warm_up": "only the adapters learn, to tell the next item's title from the history",
    "heads": "only the heads learn, from what the language model says at rest",
}
"""What happens before everything learns, in this order."""


@dataclass(frozen=True)
class EmbeddingModel:
    """Charts of one embedding model."""

    name: str
    about: str
    """What the charts of its training show."""
    curves: Sequence[Markup]
    maps: Sequence[Markup]
    """Where it attends; none where that was not looked at."""


@dataclass(frozen=True)
class Embeddings:
    """The section."""

    table: PrintedTable | None
    models: Sequence[EmbeddingModel]


def embeddings(
    embedder_curves: dy.DataFrame[EmbedderCurves] | None,
    learn_attention: dy.DataFrame[LearnAttention] | None,
    karma_curves: dy.DataFrame[KarmaCurves] | None,
    karma_attention: dy.DataFrame[KarmaAttention] | None,
) -> Embeddings | None:
    """What is known of each model that was trained; None where none was. An empty table is as good as none."""
    tables = {"LEARN": (embedder_curves, learn_attention), "KARMA": (karma_curves, karma_attention)}
    models = []
    for name, (curves, attention) in tables.items():
        drawn = embedding_health_charts.training_curves(name, curves) if curves is not None else []
        maps = attention_charts.attention_maps(name.lower(), name, attention) if attention is not None else []
        if drawn or maps:
            models.append(
                EmbeddingModel(
                    name=name,
                    about=_about(curves) if curves is not None else "",
                    curves=[Markup(svg) for svg in drawn],
                    maps=[Markup(svg) for svg in maps],
                )
            )
    return Embeddings(embedding_tables.printed_health(tables), models) if models else None


def _about(curves: pl.DataFrame) -> str:
    """A sentence for each chart, and for the stages where there are several."""
    said = [
        sentence
        for column, sentence in SAID.items()
        if column in curves.columns and curves.get_column(column).is_not_null().any()
    ]
    if "stage" in curves.columns:
        there = set(curves.get_column("stage").cast(pl.String))
        stages = [sentence for stage, sentence in STAGES.items() if stage in there]
        if stages:
            said.insert(0, f"Dotted lines part stages: {', then '.join(stages)}, then everything.")
    return " ".join(said)
