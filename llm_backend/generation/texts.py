"""Between text and token ids on the generating side: prompts as in training, which tokens end, ids back to text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm_backend.data.rows import Content
from llm_backend.generation.protocol import Response
from llm_backend.token_ids import Encoder
from llm_backend.token_options import TokenOptions
from llm_backend.truncation import Limits, fit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEEN_BEFORE = 8  # tokens of the prompt that decoding sees, so that white space at the joint comes out right


@dataclass(frozen=True)
class PromptEncoder:
    """An encoder of training and what it does to prompts that are too long."""

    encoder: Encoder
    options: TokenOptions

    def ids(self, prompt: list[int]) -> list[int]:
        """The prompt, cut on its left to ``max_prompt_length`` where training would cut it."""
        if self.options.truncation != "cut_prompt_left" or self.options.max_prompt_length is None:
            return prompt
        limits = Limits(max_prompt_length=self.options.max_prompt_length, truncation="cut_prompt_left")
        return fit(prompt, [[0]], limits, self.encoder.bos_id).prompt


def prompt_encoder(tokenizer: PreTrainedTokenizerBase, options: TokenOptions) -> PromptEncoder:
    """The encoder that training uses with these options. Raises ``DataError`` for a tokenizer without EOS."""
    encoder = Encoder(
        tokenizer, eos=options.eos, eos_token=options.eos_token, bos=options.bos, boundary=options.boundary
    )
    return PromptEncoder(encoder, options)


def prompt_ids(encoder: PromptEncoder, prompts: Sequence[Content], keys: Sequence[int]) -> list[list[int]]:
    """The token ids that training has for these prompts; messages up to the template's generation prompt.

    Cut as ``PromptEncoder.ids`` says. Limits that leave rows out of training, and ``max_length``, which counts
    responses that are not written yet, change nothing here.
    """
    rows: list[tuple[int, Content, Sequence[Content]]] = [
        (key, prompt, []) for key, prompt in zip(keys, prompts, strict=True)
    ]
    return [encoder.ids(row.prompt) for row in encoder.encoder.encode(rows)]


def end_tokens(encoder: PromptEncoder, config: Any) -> frozenset[int]:
    """The ids that end a response: EOS of training, and one or several of a model's generation configuration."""
    listed = getattr(config, "eos_token_id", None)
    more: Iterable[int] = [] if listed is None else [listed] if isinstance(listed, int) else listed
    return frozenset(int(each) for each in [*more, encoder.encoder.eos_id] if each is not None)


def as_response(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Sequence[int],
    tokens: Sequence[int],
    ends: frozenset[int],
    *,
    chat: bool,
) -> Response:
    """The response with its text, special tokens left out.

    For a prompt of text, prompt + text is what the model wrote: white space that begins the response is kept. For a
    prompt of messages the text is the content of the assistant's message, decoded by itself.
    """
    finished = bool(tokens) and tokens[-1] in ends
    body = list(tokens[:-1] if finished else tokens)
    return Response(_text(tokenizer, [] if chat else list(prompt[-SEEN_BEFORE:]), body), tuple(tokens), finished)


def _text(tokenizer: PreTrainedTokenizerBase, before: list[int], body: list[int]) -> str:
    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    opening = decode(before)
    whole = decode(before + body)
    return whole[len(opening) :] if whole.startswith(opening) else decode(body)
