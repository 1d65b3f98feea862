"""Feature tables of embeddings, and how the models behind them were trained."""

import dataframely as dy
import polars as pl

from feature_repo.table_schemas.columns import finite_unit_norm, key, probability, time, vector


class ItemContentEmbeddings(dy.Schema):
    """One row per (item, event_timestamp): its text through a frozen encoder (LEARN, content extraction)."""

    item_id = key()
    event_timestamp = time(primary_key=True)
    created_timestamp = time()
    item_content_vector_id = dy.Int64(nullable=False, min=0, unique=True)
    item_content_embedding = vector()
    item_content_hash = dy.String(
        nullable=False, min_length=1
    )  # of the prompt text: unchanged text is not encoded again

    @dy.rule()
    def item_content_embedding_is_finite_and_unit_norm(cls) -> pl.Expr:
        return finite_unit_norm("item_content_embedding")


class UserContentInterests(dy.Schema):
    """One row per (user, midnight): mean content vector of the user's history (LEARN's no-alignment baseline)."""

    user_id = key()
    event_timestamp = time(primary_key=True)
    created_timestamp = time()
    user_content_vector_id = dy.Int64(nullable=False, min=0, unique=True)
    user_content_interest = vector()
    user_content_num_items = dy.Int64(nullable=False, min=1)  # history items that had a vector
    user_content_hash = dy.String(nullable=False, min_length=1)  # of those vectors' ids: unchanged, not averaged again

    @dy.rule()
    def user_content_interest_is_finite_and_unit_norm(cls) -> pl.Expr:
        return finite_unit_norm("user_content_interest")


class EmbedderCurves(dy.Schema):
    """One row per (method, epoch) of the training of an embedding model. The model: metadata of the manifest.

    The manifest's fingerprint is the model's; its metadata names the folder of the weights.
    """

    method = dy.String(primary_key=True, min_length=1)  # learn
    epoch = dy.Int32(primary_key=True, min=0)
    train_loss = dy.Float64(nullable=False)
    validation_recall = dy.Float64(nullable=True, min=0.0, max=1.0)  # R@K of held-out targets; null: none to hold out
    participation_ratio = dy.Float64(nullable=True, min=0.0)  # of held-out users' vectors (`embedders.health`),
    effective_rank = dy.Float64(nullable=True, min=0.0)  # null where nobody is held out
    uniformity = dy.Float64(nullable=True, max=0.0)
    alignment = dy.Float64(nullable=True, min=0.0)
    seconds = dy.Float64(nullable=False, min=0.0)
    is_best = dy.Bool(nullable=False)


class LearnAttention(dy.Schema):
    """One row per (moment, layer, head): where the user tower of LEARN attends, over histories of held-out users.

    A sink is a position that most others attend to. Shares are means over the histories (`embedders.health`).
    """

    moment = dy.Enum(["untouched", "fitted"], primary_key=True, nullable=False)
    layer = dy.Int32(primary_key=True, min=1)
    head = dy.Int32(primary_key=True, min=1)
    top1_mass = probability()  # column mean of the heaviest column
    top4_mass = probability()  # of the four heaviest together
    column_entropy = probability()  # of the column means, 1 = even
    column_means = dy.List(dy.Float32(nullable=False), nullable=False, min_length=1)  # of the first positions


class KarmaCurves(dy.Schema):
    """One row per epoch of KARMA's training; epoch -1 is the network before any step. The model: the manifest.

    The manifest's fingerprint is the model's; its metadata names the folder of what serves and that of the decoder.
    Losses are null where the epoch was trained without the term, measures where nobody is held out.
    """

    epoch = dy.Int32(primary_key=True, min=-1)
    # titles: said from items' own tokens; warm_up: adapters alone, by L_gen; heads: what is beside the language model,
    # by L_act on its states at rest
    stage = dy.Enum(["untouched", "titles", "warm_up", "heads", "joint"], nullable=False)
    train_loss = dy.Float64(nullable=True)
    action_loss = dy.Float64(nullable=True)
    generation_loss = dy.Float64(nullable=True)
    reconstruction_loss = dy.Float64(nullable=True)
    image_loss = dy.Float64(nullable=True)
    validation_recall = probability(nullable=True)  # R@K of held-out targets
    title_similarity = probability(nullable=True)  # JS@50: Jaccard of title words, target against the 50 nearest
    participation_ratio = dy.Float64(nullable=True, min=0.0)
    effective_rank = dy.Float64(nullable=True, min=0.0)
    uniformity = dy.Float64(nullable=True, max=0.0)
    alignment = dy.Float64(nullable=True, min=0.0)
    top1_mass = probability(nullable=True)  # mean over layers and heads, as in KarmaAttention
    top4_mass = probability(nullable=True)
    column_entropy = probability(nullable=True)
    share_of_sink_heads = probability(nullable=True)
    title_perplexity = dy.Float64(nullable=True, min=1.0)  # of held-out titles under the language model by itself
    seconds = dy.Float64(nullable=False, min=0.0)
    is_best = dy.Bool(nullable=False)


class KarmaAttention(LearnAttention):
    """One row per (moment, layer, head): where KARMA's language model attends, over histories of held-out users."""


class ItemImageEmbeddings(dy.Schema):
    """One row per (item, event_timestamp): its picture through a frozen vision model."""

    item_id = key()
    event_timestamp = time(primary_key=True)
    created_timestamp = time()
    item_image_vector_id = dy.Int64(nullable=False, min=0, unique=True)
    item_image_embedding = vector()
    item_image_hash = dy.String(nullable=False, min_length=1)  # of the bytes: an unchanged picture is not encoded again

    @dy.rule()
    def item_image_embedding_is_finite_and_unit_norm(cls) -> pl.Expr:
        return finite_unit_norm("item_image_embedding")


class ItemKarmaEmbeddings(dy.Schema):
    """One row per (item, event_timestamp): its text and picture through KARMA's item side.

    Never earlier than the last interaction that the model was trained on (`trained_through` of the fingerprint).
    """

    item_id = key()
    event_timestamp = time(primary_key=True)
    created_timestamp = time()
    item_karma_vector_id = dy.Int64(nullable=False, min=0, unique=True)
    item_karma_embedding = vector()
    item_karma_content_vector_id = dy.Int64(nullable=False, min=0)  # the content vector that it was made of
    item_karma_image_vector_id = dy.Int64(nullable=True, min=0)  # and the image vector; null: none was known

    @dy.rule()
    def item_karma_embedding_is_finite_and_unit_norm(cls) -> pl.Expr:
        return finite_unit_norm("item_karma_embedding")


class UserKarmaInterests(dy.Schema):
    """One row per (user, midnight): what the user wants next, as KARMA's language model reads the history.

    Never earlier than the last interaction that the model was trained on (`trained_through` of the fingerprint).
    """

    user_id = key()
    event_timestamp = time(primary_key=True)
    created_timestamp = time()
    user_karma_vector_id = dy.Int64(nullable=False, min=0, unique=True)
    user_karma_interest = vector()
    user_karma_num_items = dy.Int64(nullable=False, min=1)  # history items that had a content vector
    user_karma_hash = dy.String(nullable=False, min_length=1)  # of what they are made of: unchanged, not embedded again

    @dy.rule()
    def user_karma_interest_is_finite_and_unit_norm(cls) -> pl.Expr:
        return finite_unit_norm("user_karma_interest")


class ItemLearnEmbeddings(dy.Schema):
    """One row per (item, event_timestamp): its content vector through LEARN's item tower.

    Never earlier than the last interaction that the model was trained on (`trained_through` of the fingerprint).
    """

    item_id = key()
    event_timestamp = time(primary_key=True)
    created_timestamp = time()
    item_learn_vector_id = dy.Int64(nullable=False, min=0, unique=True)
    item_learn_embedding = vector()
    item_learn_content_vector_id = dy.Int64(nullable=False, min=0)  # the content vector that it was made of

    @dy.rule()
    def item_learn_embedding_is_finite_and_unit_norm(cls) -> pl.Expr:
        return finite_unit_norm("item_learn_embedding")


class UserLearnInterests(dy.Schema):
    """One row per (user, midnight): the user's history through LEARN's user tower.

    Never earlier than the last interaction that the model was trained on (`trained_through` of the fingerprint).
    """

    user_id = key()
    event_timestamp = time(primary_key=True)
    created_timestamp = time()
    user_learn_vector_id = dy.Int64(nullable=False, min=0, unique=True)
    user_learn_interest = vector()
    user_learn_num_items = dy.Int64(nullable=False, min=1)  # history items that had a content vector
    user_learn_hash = dy.String(nullable=False, min_length=1)  # of those vectors' ids: unchanged, not embedded again

    @dy.rule()
    def user_learn_interest_is_finite_and_unit_norm(cls) -> pl.Expr:
        return finite_unit_norm("user_learn_interest")
