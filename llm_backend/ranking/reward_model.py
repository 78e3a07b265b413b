"""A reward model: a sequence classifier with one output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from llm_backend.data.rows import Content
from llm_backend.log_probs import unwrap
from llm_backend.models import DTYPES, context_of, without_dropout
from llm_backend.ranking.errors import RankingError
from llm_backend.ranking.protocol import Scores, candidate_count
from llm_backend.ranking.texts import as_answer, plain_text
from llm_backend.token_ids import Encoder, EosPolicy
from llm_backend.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Fields = dict[str, list[int]]
"""What the model is given of one response: input_ids and, from tokenizers that make them, token_type_ids."""


class RewardModelRanker:
    """The one logit of a sequence classifier, in float32 whatever the model computes in.

    ``inputs`` says what the model reads. ``joined``: prompt and response as one sequence, messages through the chat
    template, as a causal reward model was trained. ``pair``: the two texts as the tokenizer joins pairs, [CLS] prompt
    [SEP] response [SEP], as encoders are trained. ``auto``: ``pair`` for a tokenizer with CLS and SEP but no chat
    template. ``eos`` as in training (``never``: what the template writes). Padding is on the right and masked, so that
    a score does not depend on the batch, up to rounding; a model without a pad token gets an id that occurs nowhere.
    Raises: RankingError for a model with another number of outputs; on ranking, for more than ``max_length`` tokens
    (None: the model's context), for nothing is cut silently.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = 16,
        max_length: int | None = None,
        inputs: Literal["auto", "joined", "pair"] = "auto",
        eos: EosPolicy = "never",
        name: str = "reward model",
    ) -> None:
        config = unwrap(model).config
        if config.num_labels != 1:
            raise RankingError(
                f"{name} has {config.num_labels} outputs; a reward model has one (load it with num_labels=1, and check "
                "that its head was trained)"
            )
        if inputs not in ("auto", "joined", "pair"):
            raise RankingError(f"{name}: inputs must be auto, joined or pair, got {inputs!r}")
        if batch_size < 1:
            raise RankingError(f"{name}: batch_size must be at least 1, got {batch_size}")
        self.model, self.tokenizer, self.batch_size, self._name = model, tokenizer, batch_size, name
        self.max_length = max_length or context_of(model)
        encodes_pairs = None not in (tokenizer.cls_token, tokenizer.sep_token)
        templated = bool(getattr(tokenizer, "chat_template", None))
        self.pairs = encodes_pairs and not templated if inputs == "auto" else inputs == "pair"
        self.encoder = None if self.pairs else Encoder(tokenizer, eos=eos, boundary="joint")

    @classmethod
    def load(cls, path: str | Path, *, dtype: str = "float32", **settings: Any) -> RewardModelRanker:
        """From a model folder (or hub name) with its tokenizer; ``settings`` as above.

        Raises: RankingError where there is no classifier whose every weight is stored, DataError without a tokenizer.
        """
        if dtype not in DTYPES:
            raise RankingError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        try:
            model, report = AutoModelForSequenceClassification.from_pretrained(
                str(path), dtype=DTYPES[dtype], output_loading_info=True
            )
        except (OSError, ValueError) as problem:
            what = " ".join(str(problem).split())[:160]
            raise RankingError(f"no sequence classifier can be loaded from {str(path)!r}: {what}") from None
        if report["missing_keys"]:
            missing = sorted(report["missing_keys"])[0]
            raise RankingError(f"{path} holds no trained reward model: {missing} is missing and would be random")
        return cls(without_dropout(model), load_tokenizer(path), **{"name": f"reward model {path}"} | settings)

    @property
    def name(self) -> str:
        """As given."""
        return self._name

    def scores(self, prompts: Sequence[Content], candidates: Sequence[Sequence[str]]) -> Scores:
        """(n, N)."""
        width = candidate_count(self.name, prompts, candidates)
        rows = [fields for row in range(len(prompts)) for fields in self._fields(row, prompts[row], candidates[row])]
        order = sorted(range(len(rows)), key=lambda place: -len(rows[place]["input_ids"]))
        found = np.zeros(len(rows))
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), _pad_id(unwrap(self.model), rows) as pad_id:
                for start in range(0, len(order), self.batch_size):
                    part = order[start : start + self.batch_size]
                    logits = self.model(**self._batch([rows[place] for place in part], pad_id)).logits
                    found[part] = logits[:, 0].float().cpu().numpy()
        finally:
            self.model.train(training)
        return found.reshape(len(prompts), width)

    def _fields(self, row: int, prompt: Content, several: Sequence[str]) -> list[Fields]:
        if self.encoder is None:
            text = plain_text(prompt)
            made = self.tokenizer([text] * len(several), list(several), return_attention_mask=False, verbose=False)
            found = [dict(zip(made.keys(), each, strict=True)) for each in zip(*made.values(), strict=True)]
        else:
            (ids,) = self.encoder.encode([(row, prompt, [as_answer(prompt, text) for text in several])])
            found = [{"input_ids": ids.prompt + response} for response in ids.responses]
        for place, fields in enumerate(found):
            length = len(fields["input_ids"])
            if not length or (self.max_length is not None and length > self.max_length):
                raise RankingError(
                    f"{self.name}: prompt and candidate {place} of row {row} have {length:,} tokens; the model reads "
                    f"1 to {self.max_length or length:,}; leave out what is longer before ranking"
                )
        return found

    def _batch(self, rows: Sequence[Fields], pad_id: int) -> dict[str, torch.Tensor]:
        longest = max(len(fields["input_ids"]) for fields in rows)
        device = unwrap(self.model).device
        batch = {
            key: torch.tensor(
                [each[key] + [pad_id if key == "input_ids" else 0] * (longest - len(each[key])) for each in rows],
                device=device,
            )
            for key in rows[0]
        }
        lengths = torch.tensor([len(fields["input_ids"]) for fields in rows], device=device)
        batch["attention_mask"] = (torch.arange(longest, device=device) < lengths[:, None]).long()
        return batch


@contextmanager
def _pad_id(causal: Any, rows: Sequence[Fields]) -> Iterator[int]:
    """The model's pad id. Classifiers without one take the last place of a line for the end of the text, or refuse
    batches; they get, while they score, an id that no row has, so that the end is found."""
    config = causal.config.get_text_config()
    if config.pad_token_id is not None:
        yield int(config.pad_token_id)
        return
    used = {token for fields in rows for token in fields["input_ids"]}
    free = next((token for token in range(config.vocab_size) if token not in used), None)
    if free is None:
        raise RankingError(
            "the reward model has no pad token and every id occurs in the texts; set config.pad_token_id"
        )
    config.pad_token_id = free
    try:
        yield free
    finally:
        config.pad_token_id = None
