"""Says a user's KARMA vector in words, by the path that L_recon has trained. Kept apart from the model that serves.

It needs the language model of the folder beside it, and of its own only W_p, and the output layer where that is not the
table of token embeddings.

Letters: M vectors, L tokens, d their width, D width of the language model, V vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedders.karma import KarmaNetwork
from embedders.karma_model import open_language_model


class KarmaDecoder:
    """From vectors to words.

    Args:
        language_model: the decoder without its output layer.
        tokenizer: its tokenizer.
        prefix_Dd: W_p.
        output_VD: the output layer's weights.
        end: the token that closes a title; none where the tokenizer has none.
    """

    def __init__(
        self, language_model: Any, tokenizer: Any, prefix_Dd: Tensor, output_VD: Tensor, end: Sequence[int]
    ) -> None:
        self.language_model, self.tokenizer = language_model.eval(), tokenizer
        self.prefix_Dd, self.output_VD, self.end = prefix_Dd, output_VD, tuple(end)

    @classmethod
    def of_network(cls, network: KarmaNetwork) -> Self:
        """The decoder of a network."""
        return cls(
            network.towers.language_model,
            network.lm.tokenizer,
            network.prefix.weight.detach(),
            network.output_embeddings().detach(),
            network.end,
        )

    @torch.inference_mode()
    def decode(
        self, vectors_Md: NDArray[np.float32], *, most_tokens: int = 24, temperature: float = 0.0, seed: int = 0
    ) -> list[str]:
        """Words of each vector.

        Args:
            vectors_Md: users' vectors, unit norm.
            most_tokens: of a text.
            temperature: 0 takes the likeliest word each time; above, words are drawn.
            seed: of the draws.
        """
        device = self.prefix_Dd.device
        draw = torch.Generator(device=device).manual_seed(seed)
        states_MLD = (torch.from_numpy(np.ascontiguousarray(vectors_Md)).to(device) @ self.prefix_Dd.T).unsqueeze(1)
        embeddings = self.language_model.get_input_embeddings()
        cache, is_over_M = None, torch.zeros(len(vectors_Md), dtype=torch.bool, device=device)
        words_ML: list[Tensor] = []
        for _ in range(most_tokens if len(vectors_Md) else 0):
            out = self.language_model(
                inputs_embeds=states_MLD.to(embeddings.weight.dtype), past_key_values=cache, use_cache=True
            )
            cache = out.past_key_values
            logits_MV = out.last_hidden_state[:, -1].float() @ self.output_VD.float().T
            if temperature > 0.0:
                word_M = torch.multinomial((logits_MV / temperature).softmax(dim=-1), 1, generator=draw).squeeze(1)
            else:
                word_M = logits_MV.argmax(dim=-1)
            if self.end:
                is_over_M = is_over_M | (word_M == self.end[0])
                if bool(is_over_M.all()):
                    break
                word_M = torch.where(is_over_M, self.end[0], word_M)
            words_ML.append(word_M)
            states_MLD = embeddings(word_M).unsqueeze(1)
        texts = torch.stack(words_ML, dim=1).tolist() if words_ML else [[] for _ in vectors_Md]
        return [self.tokenizer.decode(words, skip_special_tokens=True).strip() for words in texts]

    def save(self, folder: Path) -> None:
        """Write what the model beside it does not have."""
        folder.mkdir(parents=True, exist_ok=True)
        embedding_VD = self.language_model.get_input_embeddings().weight
        is_tied = embedding_VD.data_ptr() == self.output_VD.data_ptr()
        weights = {"prefix": self.prefix_Dd.cpu(), **({} if is_tied else {"output": self.output_VD.cpu()})}
        torch.save({**weights, "end": torch.tensor(self.end, dtype=torch.int64)}, folder / "decoder.pt")

    @classmethod
    def load(cls, folder: Path, serving: Path | None = None) -> Self:
        """Read what `save` wrote; the language model from `serving`, by default the folder of that name beside it."""
        weights = torch.load(folder / "decoder.pt", weights_only=True)
        language_model, tokenizer = open_language_model(serving or folder.parent / "serving")
        output_VD = weights.get("output", language_model.get_input_embeddings().weight.detach())
        return cls(language_model, tokenizer, weights["prefix"], output_VD, weights["end"].tolist())
