"""Policy and reference, checked against the one tokenizer that they must share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_backend.evaluation.errors import EvaluationError
from llm_backend.models import load_model
from llm_backend.tokenizers import check_vocabulary, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def load_pair(names: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> tuple[Any, Any]:
    """The models under "model" and "reference" (None: no reference) in "dtype" on "device".

    Raises: ModelError where there is no model; DataError where the tokenizer does not fit one of them; EvaluationError
    for a reference folder with another tokenizer of its own, or a device that is not there.
    """
    policy = _load(names["model"], names, tokenizer)
    if names["reference"] is None:
        return policy, None
    _check_same_tokens(names["reference"], tokenizer)
    return policy, _load(names["reference"], names, tokenizer)


def _load(name: str, names: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Any:
    with without_bars():
        model: Any = load_model(name, dtype=names["dtype"])
    check_vocabulary(tokenizer, model.get_input_embeddings().weight.shape[0])
    try:
        return model.to(names["device"])
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = " ".join(str(error).split())[:120]
        raise EvaluationError(f"the device {names['device']!r} cannot be used ({reason}); try --device cpu") from None


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """transformers draws a bar for each load, also where nobody watches."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _check_same_tokens(reference: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Only a folder is looked into: where it holds no tokenizer, the sizes alone are compared."""
    folder = Path(reference)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return
    if load_tokenizer(folder).get_vocab() != tokenizer.get_vocab():
        raise EvaluationError(
            f"the reference {reference} has another tokenizer than the policy, so their log-probabilities belong to "
            "different tokens; compare models of one tokenizer"
        )
