"""Responses of a loaded transformers model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llm_backend.data.rows import Content
from llm_backend.generation.protocol import Response, Sampling, checked_keys
from llm_backend.generation.texts import as_response, end_tokens, prompt_encoder, prompt_ids
from llm_backend.generation.writing import write_tokens
from llm_backend.log_probs import unwrap
from llm_backend.models import check_vocabulary
from llm_backend.progress import long_work
from llm_backend.token_options import TokenOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ModelGenerator:
    """A ``Generator`` over a causal LM of transformers (PEFT models too) and its tokenizer.

    Prompts get the token ids that training with ``options`` gives them (``prompt_ids``). A response ends with EOS of
    training, or any end token of the model's generation configuration, whose other settings are not looked at:
    ``Sampling`` says all.
    Raises: DataError for a tokenizer without EOS, ModelError for one that has more tokens than the model.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, options: TokenOptions | None = None) -> None:
        check_vocabulary(model, max(tokenizer.get_vocab().values()) + 1)
        self.model, self.tokenizer = model, tokenizer
        self.encoder = prompt_encoder(tokenizer, options or TokenOptions())
        self.ends = end_tokens(self.encoder, getattr(unwrap(model), "generation_config", None))

    def generate(
        self, prompts: Sequence[Content], sampling: Sampling, *, seed: int, keys: Sequence[int] | None = None
    ) -> list[list[Response]]:
        """See ``Generator.generate``."""
        numbers = checked_keys(prompts, keys)
        ids = prompt_ids(self.encoder, prompts, numbers)
        pad = int(self.tokenizer.pad_token_id or 0)  # masked, so any id will do
        with long_work("writing responses", len(ids) * sampling.candidates) as advance:
            written = write_tokens(
                self.model, ids, numbers, sampling, seed=seed, ends=self.ends, pad_id=pad, progress=advance
            )
        return [
            [
                as_response(self.tokenizer, before, tokens, self.ends, chat=not isinstance(prompt, str))
                for tokens in several
            ]
            for prompt, before, several in zip(prompts, ids, written, strict=True)
        ]
