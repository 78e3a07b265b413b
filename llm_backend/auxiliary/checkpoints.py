"""The state of auxiliary variables as plain tensors, for a safetensors file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llm_backend.auxiliary.errors import AuxiliaryError

if TYPE_CHECKING:
    from llm_backend.auxiliary.variables import Auxiliary

VECTORS = ("residual", "dual")


def save(auxiliary: Auxiliary) -> dict[str, Tensor]:
    """Mode, keys, weights, delta's parameters, moments, and in mode dual the residual and the dual vector by name."""
    state = {
        "mode": _text(auxiliary.options.mode),
        "keys": auxiliary.slots.keys.clone(),
        "weights": auxiliary.weights.clone(),
        "raw": auxiliary.raw.detach().clone(),
        "steps": torch.tensor(auxiliary.n_steps),
        "visits": auxiliary.turns.visits.clone(),
    }
    state |= {f"optimiser.{name}": value for name, value in auxiliary.optimiser.state_dict().items()}
    if auxiliary.basis is not None:
        # a basis of a null space is unique up to a rotation only, which may differ on another machine
        state["basis"] = auxiliary.basis.clone()
    for kind in VECTORS:
        found = getattr(auxiliary, kind)
        state |= {} if found is None else {f"{kind}.{name}": value.clone() for name, value in found.items()}
    return state


def load(auxiliary: Auxiliary, saved: dict[str, Tensor]) -> None:
    """Put a saved state back, or refuse it and change nothing.  Raises AuxiliaryError."""
    missing = sorted(name for name in save(auxiliary) if name not in saved and not name.startswith(VECTORS))
    if missing:
        raise AuxiliaryError(f"the saved auxiliary variables lack {', '.join(missing)}: the checkpoint is not complete")
    if _parts(saved, "residual").keys() != _parts(saved, "dual").keys():
        raise AuxiliaryError("the saved auxiliary variables have a residual without a dual vector, or the reverse")
    mode = bytes(saved["mode"].tolist()).decode()
    if mode != auxiliary.options.mode:
        raise AuxiliaryError(
            f"the saved auxiliary variables are of mode {mode!r}, this run is {auxiliary.options.mode!r}"
        )
    if not torch.equal(saved["keys"], auxiliary.slots.keys):
        raise AuxiliaryError(
            f"the saved auxiliary variables belong to other responses ({saved['keys'].shape[0]} keys, "
            f"{auxiliary.slots.size} here, or in another order); resume with the same data and tokenizer"
        )
    if not torch.equal(saved["weights"].cpu(), auxiliary.weights):
        raise AuxiliaryError("the saved weights D differ from this run's: the reference or the prompt law has changed")
    if saved["raw"].shape != auxiliary.raw.shape:
        raise AuxiliaryError(
            f"{saved['raw'].shape[0]} saved coordinates of delta, but this run has {auxiliary.raw.numel()}"
        )
    auxiliary.raw.data.copy_(saved["raw"])
    auxiliary.optimiser.load_state_dict({name: saved[f"optimiser.{name}"] for name in ("first", "second", "visits")})
    auxiliary.n_steps = int(saved["steps"])
    auxiliary.turns.visits.copy_(saved["visits"])
    if auxiliary.basis is not None:
        auxiliary.basis = saved["basis"].clone()
    for kind in VECTORS:
        found = {name: value.clone() for name, value in _parts(saved, kind).items()}
        setattr(auxiliary, kind, found or None)


def _parts(saved: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    prefix = f"{kind}."
    return {name.removeprefix(prefix): value for name, value in saved.items() if name.startswith(prefix)}


def _text(value: str) -> Tensor:
    return torch.tensor(list(value.encode()), dtype=torch.uint8)
