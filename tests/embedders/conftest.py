"""An encoder small enough to train in a test."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def save_word_encoder() -> Callable[..., Path]:
    """Saves a random BERT of two layers into a folder, the same every time, with a tokenizer of whole words."""

    def save(folder: Path, words: Sequence[str], *, width: int = 32, dropout: float = 0.1) -> Path:
        vocabulary = {name: number for number, name in enumerate(["[UNK]", "[PAD]", "[CLS]", "[SEP]", *words])}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            unk_token="[UNK]",
            pad_token="[PAD]",
            cls_token="[CLS]",
            sep_token="[SEP]",
            model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        ).save_pretrained(folder)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            config = BertConfig(
                vocab_size=len(vocabulary),
                hidden_size=width,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=2 * width,
                max_position_embeddings=32,
                pad_token_id=1,
                initializer_range=0.2,  # words differ from the start, as those of a pretrained model do
                hidden_dropout_prob=dropout,
                attention_probs_dropout_prob=dropout,
            )
            BertModel(config).save_pretrained(folder)
        return folder

    return save
