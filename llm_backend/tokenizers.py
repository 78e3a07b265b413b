"""Tokenizers by name, and whether one fits a model: EOS, padding, vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llm_backend.data.errors import DataError, import_extra
from llm_backend.hub import HubNameError, offline
from llm_backend.token_ids import eos_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PARTS = ("token", "vocab", "spiece", ".model")
"""One of them is in the name of some file of every tokenizer."""
SPARE_ROWS = 1024  # models round their vocabulary up, by a few hundred rows ...
SPARE_SHARE = 0.05  # ... or a few per cent; more than both is another vocabulary


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """A tokenizer from a local folder or the hub. Raises ``DataError`` where there is none."""
    transformers = import_extra("transformers", "loading a tokenizer")
    try:
        found: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(
            str(name), local_files_only=offline(str(name))
        )
    except HubNameError as problem:
        raise DataError(f"there is no tokenizer {str(name)!r}, neither as a folder nor on the hub: {problem}") from None
    except Exception as error:  # the hub, the network and each tokenizer class raise their own kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        if Path(name).is_dir() and not any(part in each.name for each in Path(name).iterdir() for part in PARTS):
            raise DataError(f"the folder {name} holds no tokenizer; name one that does, as a model's own") from None
        if Path(name).is_dir():
            raise DataError(f"there is no tokenizer that can be read in the folder {name} ({reason})") from None
        raise DataError(f"there is no tokenizer {str(name)!r}, neither as a folder nor on the hub ({reason})") from None
    return found


def check_special_tokens(
    tokenizer: PreTrainedTokenizerBase, *, eos_token: str | None = None, eos_needed: bool = True
) -> None:
    """Raises ``DataError`` for a tokenizer without EOS, or without a token to pad batches with."""
    eos_id(tokenizer, eos_token, needed=eos_needed)
    if tokenizer.pad_token_id is None:
        raise DataError(
            "the tokenizer has no pad token; set tokenizer.pad_token = tokenizer.eos_token (padding is told by its "
            "place here, never by its id, so EOS is still scored), or add a token of its own"
        )


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, n_embeddings: int) -> None:
    """Raises ``DataError`` where tokenizer and model (``n_embeddings`` input embeddings) cannot belong together.

    Every id needs a row. A model may have some rows more, for speed; beyond 1,024 and 5 % more it was made for another
    vocabulary, and would be trained on ids that mean something else to it.
    """
    size = max(tokenizer.get_vocab().values()) + 1
    if size > n_embeddings:
        raise DataError(
            f"the tokenizer has ids up to {size - 1}, but the model embeds only {n_embeddings}; take the model's own "
            "tokenizer, or resize its embeddings"
        )
    if n_embeddings - size > max(SPARE_ROWS, SPARE_SHARE * n_embeddings):
        raise DataError(
            f"the model embeds {n_embeddings} tokens, but the tokenizer has only {size}: it is not this model's "
            "tokenizer; load the two from the same place"
        )
