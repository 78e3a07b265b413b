"""Log-probabilities of whole responses under a causal LM: only response positions meet the head, in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from llm_backend.batching import PADDING, Collator
from llm_backend.errors import ModelError
from llm_backend.head import token_log_probs
from llm_backend.lean_blocks import lean_blocks
from llm_backend.packed_attention import packed_attention
from llm_backend.sequential_kl import HeadInput, token_kls
from llm_backend.varlen_attention import varlen_attention, varlen_runs

HeadFunction = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(hidden (N, H), weight (V, H), bias (V,) or None) -> anything, computed inside the model's own forward pass."""
SCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


@dataclass(frozen=True)
class ResponseScores:
    """Sums over the tokens of each response, (n,) by side.

    ``collisions`` are sums of log sum_v pi(v)^2; ``sequential_kls`` are sums of KL(ref || pi) over the vocabulary.
    """

    log_probs: dict[str, Tensor]
    lengths: dict[str, Tensor]
    collisions: dict[str, Tensor] | None = None
    sequential_kls: dict[str, Tensor] | None = None

    def policy_fields(self) -> dict[str, Tensor]:
        """``policy_SIDE``, ``SIDE_length`` and, if scored, ``seqkl_SIDE`` as ``objectives.PairLogProbs`` names them."""
        lengths = {f"{side}_length": value for side, value in self.lengths.items()}
        kls = {f"seqkl_{side}": value for side, value in (self.sequential_kls or {}).items()}
        return {f"policy_{side}": value for side, value in self.log_probs.items()} | lengths | kls

    def weight_fields(self) -> dict[str, Tensor]:
        """WPO's ``weight_SIDE``: exp(mean over tokens of [log pi(y_t) - log sum_v pi(v)^2]), a constant.

        Source: Zhou et al. 2024, arXiv:2406.11827, Sec. 3.2 ("sampled alignment").
        """
        if self.collisions is None:
            raise ModelError("the weights of WPO need response_log_probs(..., collision=True)")
        with torch.no_grad():
            return {
                f"weight_{side}": torch.exp((self.log_probs[side] - self.collisions[side]) / self.lengths[side])
                for side in ("chosen", "rejected")
            }


def response_log_probs(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    sides: Sequence[str] = ("chosen", "rejected"),
    *,
    collision: bool = False,
    reference: HeadInput | None = None,
    chunk_elements: int | None = None,
) -> ResponseScores:
    """log pi(y|x) = sum_t log pi(y_t | x, y_<t) of every response of a batch that ``Collator`` made with these sides.

    float32 (float64 for a float64 model) whatever the model computes in; does not depend on padding or on the other
    rows of the batch, up to rounding. ``reference`` (``Reference.head_input`` of this very batch) adds the sequential
    KL. ``model`` may be wrapped (PEFT, DDP, FSDP): it is called once, as a whole.
    Raises: ModelError for a head that is not a linear layer, or logits that the model scales afterwards.
    """
    collisions: list[Tensor] = []
    kls: list[Tensor] = []

    def score(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        scores = token_log_probs(
            hidden, weight, bias, batch["targets"], collision=collision, chunk_elements=chunk_elements
        )
        if scores.collision is not None:
            collisions.append(scores.collision)
        if reference is not None:
            kls.append(token_kls(HeadInput(hidden, weight, bias), reference, chunk_elements=chunk_elements))
        return scores.log_prob

    log_prob = at_places(model, batch, score)
    n_sides, n = batch["lengths"].shape
    owners = batch["owners"]

    def total(values: Tensor) -> dict[str, Tensor]:
        sums = values.new_zeros(n_sides * n).index_add(0, owners, values).reshape(n_sides, n)
        return {side: sums[k] for k, side in enumerate(sides)}

    lengths = {side: batch["lengths"][k].to(log_prob.dtype) for k, side in enumerate(sides)}
    extras = [total(found[0]) if found else None for found in (collisions, kls)]
    return ResponseScores(total(log_prob), lengths, *extras)


def at_places(model: nn.Module, batch: Mapping[str, Tensor], function: HeadFunction) -> Tensor:
    """Run the model on a batch; at its head, apply ``function`` to the hidden states of ``batch["places"]`` instead.

    The whole model is called, so wrappers that gather parameters or synchronise gradients see an ordinary forward pass.
    """
    causal = unwrap(model)
    head = checked_head(causal)
    found: list[Tensor] = []

    def instead(hidden: Tensor) -> Tensor:
        rows = hidden.reshape(-1, hidden.shape[-1])
        rows = rows if at_end else rows.index_select(0, batch["places"])
        found.append(function(rows, head.weight, head.bias))
        return found[-1]

    packed = "spans" in batch
    attend = varlen_attention if packed and varlen_runs(causal) else packed_attention
    attention = attend(causal, batch["spans"]) if packed else contextlib.nullcontext()
    blocks = lean_blocks(causal, batch["places"]) if packed else contextlib.nullcontext(False)
    with _replaced_forward(head, instead), attention, blocks as at_end:
        model(
            input_ids=batch["input_ids"],
            attention_mask=None if packed else attention_mask(batch["segments"], causal.dtype),
            position_ids=batch["position_ids"],
            use_cache=False,
        )
    return found[0]


def attention_mask(segments: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask of ``segments`` (lines, T): 2-D where every line is one response, else additive (lines, 1, T, T).

    A token sees the tokens before it that are in its own response or in the prompt. Padding sees itself, so that no
    row of the softmax is empty.
    """
    if int(segments.max()) <= 1:
        return (segments != PADDING).long()
    width = segments.shape[1]
    index = torch.arange(width, device=segments.device)
    query, key = segments[:, :, None], segments[:, None, :]
    seen = ((key == 0) | (key == query)) & (key != PADDING) & (index[None, :] <= index[:, None])
    seen = seen | (index[None, :] == index[:, None])
    mask = torch.zeros(seen.shape, dtype=dtype, device=segments.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def unwrap(model: Any) -> Any:
    """The transformers model inside DDP, FSDP, torch.compile and PEFT wrappers."""
    while True:
        inner: Any = getattr(model, "module", None) or getattr(model, "_orig_mod", None)
        if inner is None and hasattr(model, "get_base_model"):
            inner = model.get_base_model()
        if not isinstance(inner, nn.Module) or inner is model:
            return model
        model = inner


def checked_head(causal: Any) -> nn.Linear:
    """The output embedding of a causal LM. Raises ModelError where scores would not be the model's own."""
    head = causal.get_output_embeddings() if hasattr(causal, "get_output_embeddings") else None
    if not _is_linear(head):
        kind = "none" if head is None else type(head).__name__
        raise ModelError(f"the LM head must be a plain linear layer, got {kind}; keep adapters and quantisation off it")
    for name in SCALED_LOGITS:
        value = getattr(causal.config.get_text_config(), name, None)
        if value not in (None, 1, 1.0):
            raise ModelError(
                f"{type(causal).__name__} changes its logits after the head ({name} = {value}): unsupported"
            )
    return head


def _is_linear(module: Any) -> TypeGuard[nn.Linear]:
    """Whether it is nn.Linear itself, also where FSDP2 has put its own class in front."""
    kinds = type(module).__mro__
    if kinds[0] is nn.Linear:
        return True
    from torch.distributed.fsdp import FSDPModule

    return kinds[1:3] == (FSDPModule, nn.Linear)


@contextlib.contextmanager
def _replaced_forward(module: nn.Module, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    module.forward = forward  # shadows the method of the class
    try:
        yield
    finally:
        del module.forward


def best_collator(model: Any, sides: Sequence[str], pad_id: int = 0, *, share: bool | None = None) -> Collator:
    """The layout that saves most for this model and device, tried out: packed, shared prompts, or separate lines.

    Packed are models on a CPU, and on a GPU those in half precision, where its variable-length attention runs.
    ``share`` False asks for separate lines, True for shared ones without trying.
    """
    if share is False:
        return Collator(tuple(sides), pad_id, shared=False)
    causal = unwrap(model)
    packs = (causal.device.type == "cpu" or varlen_runs(causal)) and shares_prompts(model, packed=True)
    shared = packs or (len(sides) > 1 and (bool(share) or shares_prompts(model)))
    return Collator(tuple(sides), pad_id, shared=shared, packed=packs)


def shares_prompts(model: Any, *, packed: bool = False) -> bool:
    """Whether [prompt | chosen | rejected] in one line gives this model the log-probabilities of separate lines.

    Tried out on two small pairs, as architectures differ: a recurrent or ALiBi model, or an attention kernel that takes
    no 4-D mask, does not pass. What would not show there does not pass either: windows that may be shorter than the
    lines, and blocks that are computed again in the backward pass, when packed attention is over.
    """
    causal = unwrap(model)
    config = causal.config.get_text_config()
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return False
    if packed and any(getattr(module, "gradient_checkpointing", False) is True for module in causal.modules()):
        return False
    tokens = [token % config.vocab_size for token in (5, 3, 8, 2, 9, 4, 7, 1, 6)]
    rows = [{"prompt_ids": tokens[:3], "chosen_ids": tokens[3:6], "rejected_ids": tokens[6:]}]
    rows.append({"prompt_ids": tokens[:1], "chosen_ids": tokens[1:2], "rejected_ids": tokens[2:4]})
    training = model.training
    model.eval()
    try:
        together = _score_once(model, Collator(packed=packed)(rows))
        apart = _score_once(model, Collator(shared=False)(rows))
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return False
    finally:
        model.train(training)
    tolerance = 1e-4 if causal.dtype in (torch.float32, torch.float64) else 5e-2
    return bool(torch.allclose(together, apart, rtol=tolerance, atol=tolerance))


def _score_once(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    device = unwrap(model).device
    with torch.no_grad():
        scores = response_log_probs(model, {name: value.to(device) for name, value in batch.items()})
    return torch.cat(list(scores.log_probs.values()))
