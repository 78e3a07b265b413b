"""Between text and token ids on the generating side: prompts as in training, which tokens end, ids back to text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from llm_backend.data.rows import Content
from llm_backend.generation.protocol import Response
from llm_backend.token_ids import Encoder
from llm_backend.token_options import TokenOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEEN_BEFORE = 8  # tokens of the prompt that decoding sees, so that white space at the joint comes out right


def prompt_encoder(tokenizer: PreTrainedTokenizerBase, options: TokenOptions) -> Encoder:
    """The encoder that training uses with these options. Raises ``DataError`` for a tokenizer without EOS."""
    return Encoder(tokenizer, eos=options.eos, eos_token=options.eos_token, bos=options.bos, boundary=options.boundary)


def prompt_ids(encoder: Encoder, prompts: Sequence[Content], keys: Sequence[int]) -> list[list[int]]:
    """The token ids that training has for these prompts; messages up to the template's generation prompt."""
    rows: list[tuple[int, Content, Sequence[Content]]] = [
        (key, prompt, []) for key, prompt in zip(keys, prompts, strict=True)
    ]
    return [row.prompt for row in encoder.encode(rows)]


def end_tokens(encoder: Encoder, config: Any) -> frozenset[int]:
    """The ids that end a response: EOS of training, and one or several of a model's generation configuration."""
    listed = getattr(config, "eos_token_id", None)
    more: Iterable[int] = [] if listed is None else [listed] if isinstance(listed, int) else listed
    return frozenset(int(each) for each in [*more, encoder.eos_id] if each is not None)


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
