"""A language model small enough to train in a test, with a tokenizer of the kind that real ones have."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from embedders.causal_lm import CausalLM
from embedders.relevance_prompts import QueryItem, Reasoning, prompt


@pytest.fixture(scope="session")
def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """BPE over bytes, learnt from a few prompts and answers; with an end, without a beginning."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pair = QueryItem("red chair", "Acme red chair", "chairs", "Acme", "red, 3 in")
    values = ["chair", "acme", "x100", "red, 3 in"] * 2
    lines = [
        Reasoning.of_values([*values, "match", "mismatch", "na", "match", label]).line() for label in ("good", "bad")
    ]
    tokenizer.train_from_iterator([prompt(pair), prompt(pair, label_only=True), *lines] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


@pytest.fixture(scope="session")
def make_lm(byte_level_tokenizer: PreTrainedTokenizerFast) -> Callable[..., CausalLM]:
    """Makes a random Llama, the same for the same seed."""

    def make(seed: int = 0, width: int = 32) -> CausalLM:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(byte_level_tokenizer) + 4,  # as often, the model has more rows than there are tokens
            hidden_size=width,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=2 * width,
            max_position_embeddings=1024,
            initializer_range=0.2,
            tie_word_embeddings=True,
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
        )
        return CausalLM("tiny", LlamaForCausalLM(config).eval(), byte_level_tokenizer)

    return make


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
