"""The table of embedding models: before training and as kept, dashes for what nobody measured."""

import polars as pl

from embedders import attention_maps
from feature_repo.table_schemas import EmbedderCurves, KarmaAttention, KarmaCurves, LearnAttention
from ranker import embedding_tables
from ranker.embedding_tables import COLUMNS, printed_health
from ranker.report_embeddings import embeddings


def frame(schema, rows):
    return schema.validate(pl.DataFrame(rows, schema=schema.create_empty().schema))


def learn_curves():
    return frame(
        EmbedderCurves,
        [
            {"method": "learn", "epoch": epoch, "train_loss": 1.0, "validation_recall": 0.25 * epoch, "seconds": 1.0}
            | {"effective_rank": 8.0 + epoch, "participation_ratio": 5.04, "uniformity": -2.125, "alignment": 1.0}
            | {"is_best": epoch == 1}
            for epoch in range(3)
        ],
    )


def attention(schema=LearnAttention):
    masses = {"untouched": (0.2, 0.3), "fitted": (0.31, 0.9)}
    return frame(
        schema,
        [
            {"moment": moment, "layer": 1, "head": head, "top1_mass": mass, "top4_mass": 1.0}
            | {"column_entropy": 0.5, "column_means": [1.0]}
            for moment, several in masses.items()
            for head, mass in enumerate(several, 1)
        ],
    )


def karma_curves(first="joint"):
    return frame(
        KarmaCurves,
        [
            {"epoch": epoch, "stage": ("untouched", first, "joint")[epoch + 1], "title_perplexity": 40.0 + epoch}
            | {"top1_mass": 0.5, "share_of_sink_heads": 0.75, "seconds": 1.0, "is_best": epoch == 0}
            for epoch in (-1, 0, 1)
        ],
    )


def printed(models):
    table = printed_health(models)
    names = [column.name for column in COLUMNS]
    return [dict(zip(names, [cell.text for cell in row.cells], strict=True)) for row in table.rows]


def test_learn_is_known_before_training_by_its_attention_and_afterwards_by_the_epoch_kept():
    before, kept = printed({"LEARN": (learn_curves(), attention())})
    assert (before["Moment"], before["recall"], before["effective rank"]) == ("before training", "–", "–")
    assert (before["top 1"], before["heads with a sink"]) == ("0.250", "0%")  # 0.3 is not more than 0.3
    assert (kept["Moment"], kept["recall"], kept["effective rank"]) == ("as kept", "0.2500", "9.0")
    assert (kept["top 1"], kept["heads with a sink"]) == ("0.605", "100%")
    assert (kept["uniformity"], kept["participation"], kept["perplexity"]) == ("−2.12", "5.0", "–")


def test_karma_is_known_by_its_curves_alone_where_they_have_it():
    before, kept = printed({"LEARN": (None, None), "KARMA": (karma_curves(), None)})
    assert (before["perplexity"], kept["perplexity"]) == ("39.0", "40.0")
    assert (kept["top 1"], kept["heads with a sink"]) == ("0.500", "75%")


def test_a_model_is_named_once_and_the_next_begins_anew():
    table = printed_health({"LEARN": (learn_curves(), attention()), "KARMA": (karma_curves(), None)})
    assert [row.is_repeat for row in table.rows] == [False, True, False, True]
    assert [row.cells[0].text for row in table.rows] == ["LEARN", "LEARN", "KARMA", "KARMA"]


def test_a_table_older_than_its_columns_is_printed_as_far_as_it_goes():
    older = learn_curves().drop("participation_ratio", "effective_rank", "uniformity", "alignment")
    (kept,) = printed({"LEARN": (older, None)})
    assert (kept["recall"], kept["effective rank"]) == ("0.2500", "–")


def test_of_nothing_there_is_no_table_and_no_section():
    assert printed_health({"LEARN": (None, None), "KARMA": (None, None)}) is None
    assert embeddings(None, None, None, None) is None
    empty = [schema.create_empty() for schema in (EmbedderCurves, LearnAttention, KarmaCurves, KarmaAttention)]
    assert embeddings(*empty) is None


def test_the_section_has_the_models_that_there_are_and_says_what_their_charts_mean():
    both = embeddings(learn_curves(), attention(), karma_curves(), attention(KarmaAttention))
    assert [model.name for model in both.models] == ["LEARN", "KARMA"]
    assert [len(model.maps) for model in both.models] == [2, 2]
    assert "Recall" in both.models[0].about
    assert "Perplexity" not in both.models[0].about
    assert "Perplexity" in both.models[1].about
    assert "otted line" not in both.models[1].about  # all of it learnt from the first step
    staged = embeddings(None, None, karma_curves("heads"), attention(KarmaAttention))
    assert staged.models[0].about.startswith("Dotted lines part stages: only the heads learn, from what")
    alone = embeddings(learn_curves(), LearnAttention.create_empty(), None, None)
    assert [(model.name, len(model.maps)) for model in alone.models] == [("LEARN", 0)]


def test_a_sink_is_the_same_to_the_report_as_to_the_models():
    assert embedding_tables.SINK_MASS == attention_maps.SINK_MASS


def test_a_perplexity_with_too_many_digits_is_said_by_its_size():
    wild = karma_curves().with_columns(title_perplexity=pl.Series([58_607_783_343.6, 12_345.678, 807.1]))
    before, kept = printed({"KARMA": (wild, attention(KarmaAttention))})
    assert (before["perplexity"], kept["perplexity"]) == ("5.9e+10", "12345.7")
