"""A device that is not there: its tensors compute on the CPU, and refuse to be mixed with tensors of the CPU.

Run as a program, it takes language models through training, AuxDPO, generation and evaluation on that device.
An operation on tensors of two devices, which a GPU would refuse, raises ``MixedDevicesError``: so a missing
``.to(device)`` shows without a GPU. Kernels, speed and memory do not. The device is torch's place for private back
ends, of which a process has one for good: hence a program of its own.

    python tests/llm_backend/pretended_device.py FOLDER [PART ...]
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretended"
aten = torch.ops.aten
CROSSING = {aten._to_copy.default, aten.copy_.default}
"""Operations that may read one device and write the other."""
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
"""A GPU's tensor may be indexed by the CPU's; not the reverse."""


class MixedDevicesError(AssertionError):
    """What a GPU would refuse. No kind of error that the tested code catches."""


class Elsewhere(torch.Tensor):
    """A tensor on the pretended device; ``inner`` has its numbers."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Elsewhere:
        made: Elsewhere = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=torch.device(NAME, 0), requires_grad=inner.requires_grad,
        )  # fmt: skip
        made.inner = inner.detach()
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(function, args, kwargs or {})

    def tolist(self) -> Any:
        """As from any device; torch leaves it out for wrappers."""
        return self.inner.tolist()


class Watching(TorchDispatchMode):
    """So that what is made on the device out of nothing, or moved to it, is seen too."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(function, args, kwargs or {})


class Making(TorchFunctionMode):
    """So that torch.tensor, which dispatches nothing, comes by way of the CPU."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(kwargs or {})
        device = named.pop("device", None) if function is torch.tensor else None
        made = function(*args, **named)
        return made if device is None else made.to(device)


def compute(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation: its devices checked, done on the CPU, its result put where it belongs."""
    flat, form = tree_flatten((args, kwargs))
    there = any(isinstance(value, Elsewhere) for value in flat)
    if there and function not in CROSSING:
        checked = [args[0], *tree_flatten(args[2:])[0]] if function in INDEXING and _is_there(args[0]) else flat
        for value in checked:
            if isinstance(value, torch.Tensor) and not _is_there(value) and value.ndim > 0:
                raise MixedDevicesError(
                    f"{function} got a tensor {tuple(value.shape)} of the CPU among others elsewhere"
                )
    asked = kwargs.get("device")
    goal = there if asked is None else torch.device(asked).type == NAME
    plain, named = tree_unflatten([value.inner if _is_there(value) else value for value in flat], form)
    if asked is not None:
        named["device"] = torch.device("cpu")
    result = function(*plain, **named)
    first = next(iter(function._schema.arguments), None)
    if first is not None and first.alias_info is not None and first.alias_info.is_write:
        return args[0] if function._schema.returns else None
    return tree_map(lambda value: Elsewhere(value) if goal and isinstance(value, torch.Tensor) else value, result)


def _is_there(value: Any) -> bool:
    return isinstance(value, Elsewhere)


class Module(_DummyBackendModule):
    """What torch asks of a back end."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """For autocast."""
        return [torch.bfloat16]


def restored(tests: Any, at: Path) -> None:
    """Delta's state comes from a file, on the CPU, and training goes on."""
    trainer = tests.trained(at, NAME, "dual", optim="adamw_torch", max_steps=2)
    trainer.auxiliary.load_state_dict({name: value.cpu() for name, value in trainer.auxiliary.state_dict().items()})
    trainer.reference = None  # the policy is no longer its start
    trainer.train()


def run(folder: Path, wanted: list[str]) -> None:
    """All parts, or those wanted: the tests of ``test_gpu.py`` on this device; ``mixing`` is a mistake on purpose."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=Module())
    if wanted == ["mixing"]:
        with Watching():
            print(torch.ones(2, device=NAME) + torch.ones(2))
        return
    sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]
    import test_gpu as tests

    os.environ["ACCELERATE_TORCH_DEVICE"] = f"{NAME}:0"  # where a trainer goes that is not told to stay on the CPU
    parts: dict[str, Any] = {
        f"log-probs, {layout}": lambda at, layout=layout: tests.test_log_probs_are_those_of_the_cpu(NAME, layout)
        for layout in ("separate", "shared")
    }
    for mode in (None, *tests.MODES):
        parts[f"training, {mode or 'dpo'}"] = lambda at, mode=mode: tests.trained(at, NAME, mode, optim="adamw_torch")
    parts["restoring"] = lambda at: restored(tests, at)
    parts["moving"] = lambda at: tests.test_the_trainer_takes_model_and_delta_along(NAME, at)
    parts["generation"] = lambda at: tests.test_generation_is_that_of_the_cpu(NAME, 0.7)
    parts["evaluation"] = lambda at: tests.test_evaluation_is_that_of_the_cpu(NAME)
    for number, (name, work) in enumerate(parts.items()):
        if wanted and name not in wanted:
            continue
        with Watching(), Making():
            work(folder / str(number))
        print(f"done: {name}", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    run(Path(sys.argv[1]), sys.argv[2:])
