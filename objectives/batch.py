"""PairLogProbs: everything that an objective may ask of a batch of preference pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from array_api_compat import array_namespace

from objectives.errors import BatchError, MixedArraysError

Array = Any

SIDES = ("chosen", "rejected", "source_chosen", "source_rejected")  # the responses of a pair
LOG_PROBS = (
    "policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected",
    "policy_source_chosen", "reference_source_chosen", "policy_source_rejected", "reference_source_rejected",
)  # fmt: skip
LENGTHS = ("chosen_length", "rejected_length", "source_chosen_length", "source_rejected_length")
DIFFERENTIABLE = (
    "policy_chosen", "policy_rejected", "policy_source_chosen", "policy_source_rejected",
    "delta_chosen", "delta_rejected", "seqkl_chosen", "seqkl_rejected",
)  # fmt: skip
MEANING = {
    "policy_chosen": "log pi(y_w|x), summed over the response tokens",
    "policy_rejected": "log pi(y_l|x)",
    "reference_chosen": "log ref(y_w|x)",
    "reference_rejected": "log ref(y_l|x)",
    "chosen_length": "|y_w| in tokens, EOS included, prompt excluded",
    "rejected_length": "|y_l| in tokens",
    "policy_source_chosen": "log pi(y_ws|x): the best response of the source models",
    "reference_source_chosen": "log ref(y_ws|x)",
    "source_chosen_length": "|y_ws| in tokens",
    "policy_source_rejected": "log pi(y_ls|x): the worst response of the source models",
    "reference_source_rejected": "log ref(y_ls|x)",
    "source_rejected_length": "|y_ls| in tokens",
    "weight_chosen": "exp(mean over tokens of [log pi(y_t) - log sum_v pi(v)^2]) of y_w, a constant",
    "weight_rejected": "the same for y_l",
    "win_chosen": "P(y_w beats a response of the current policy)",
    "win_rejected": "P(y_l beats a response of the current policy)",
    "seqkl_chosen": "D_w = sum over the positions of y_w of KL(ref || pi) over the vocabulary",
    "seqkl_rejected": "D_l, the same for y_l",
    "delta_chosen": "auxiliary reward of (x, y_w), in reward units",
    "delta_rejected": "auxiliary reward of (x, y_l), in reward units",
    "mismatched_log_ratio": "log pi/ref of a response drawn for another prompt, or the exact KL(pi || ref), a constant",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLogProbs:
    """Preference pairs as numbers: log-probabilities, lengths, and what some objectives need besides.

    Shapes: every field is (..., n): pairs on the last axis, leading axes are independent runs.  All fields of a batch
    have one shape and come from one array library (numpy, torch, or any other that follows the array API standard).
    Log-probabilities are sums over tokens in nats; objectives divide by lengths themselves.  ``MEANING`` in this
    module says what each field is.

    ``validate=False`` skips the checks of values (in hot loops and under ``torch.func`` or ``torch.compile``); what
    an objective needs and does not find is an error in either case.

    Raises: BatchError for a bad type, shape or value (it names the rows); MixedArraysError for two array libraries.
    """

    policy_chosen: Array
    policy_rejected: Array
    reference_chosen: Array = None
    reference_rejected: Array = None
    chosen_length: Array = None
    rejected_length: Array = None
    policy_source_chosen: Array = None
    reference_source_chosen: Array = None
    source_chosen_length: Array = None
    policy_source_rejected: Array = None
    reference_source_rejected: Array = None
    source_rejected_length: Array = None
    weight_chosen: Array = None
    weight_rejected: Array = None
    win_chosen: Array = None
    win_rejected: Array = None
    seqkl_chosen: Array = None
    seqkl_rejected: Array = None
    delta_chosen: Array = None
    delta_rejected: Array = None
    mismatched_log_ratio: Array = None
    validate: bool = True

    def __post_init__(self) -> None:
        if self.validate:
            _check(self)

    @property
    def shape(self) -> tuple[int, ...]:
        """(..., n)."""
        return tuple(self.policy_chosen.shape)

    def arrays(self) -> dict[str, Array]:
        """The fields that are present, by name."""
        return {name: value for name in MEANING if (value := getattr(self, name)) is not None}

    def number(self, name: str) -> Array:
        """A field as floating point numbers of the dtype of ``policy_chosen`` (lengths may come as integers)."""
        value = getattr(self, name)
        dtype = self.policy_chosen.dtype
        return value if value.dtype == dtype else array_namespace(value).astype(value, dtype)

    def map(self, function: Callable[[Array], Array]) -> PairLogProbs:
        """The batch with ``function`` applied to every field that is present."""
        return replace(self, **{name: function(value) for name, value in self.arrays().items()})

    def swapped(self) -> PairLogProbs:
        """The batch with chosen and rejected exchanged: every row (a, b) becomes (b, a)."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return PairLogProbs(**{_opposite(name): value for name, value in values.items()})


def _opposite(name: str) -> str:
    if "chosen" in name:
        return name.replace("chosen", "rejected")
    return name.replace("rejected", "chosen")


def bad_rows(bad: Array, limit: int = 5) -> str:
    """The positions of the true entries, for an error message: ``rows 3, 17 and 4 more``."""
    xp = array_namespace(bad)
    places = [[int(i) for i in axis] for axis in xp.nonzero(bad)]
    rows = [str(p[0]) if len(p) == 1 else str(tuple(p)) for p in zip(*places, strict=True)]
    more = f" and {len(rows) - limit} more" if len(rows) > limit else ""
    return f"row{'s' if len(rows) > 1 else ''} {', '.join(rows[:limit])}{more}"


def _check(batch: PairLogProbs) -> None:
    arrays = batch.arrays()
    for required in ("policy_chosen", "policy_rejected"):
        if required not in arrays:
            raise BatchError(f"{required} is None; every batch needs it ({MEANING[required]})")
    for name, value in arrays.items():
        if not hasattr(value, "dtype") or not hasattr(value, "shape"):
            raise BatchError(f"{name} must be an array (numpy, torch, ...), got {type(value).__name__}")
    try:
        xp = array_namespace(*arrays.values())
    except TypeError:
        kinds = {name: type(value).__module__.split(".")[0] for name, value in arrays.items()}
        raise MixedArraysError(f"one batch needs one array library, got {kinds}; convert the fields first") from None
    _check_kinds(xp, arrays)
    _check_shapes(arrays)
    _check_values(xp, arrays)


def _check_kinds(xp: Any, arrays: dict[str, Array]) -> None:
    for name, value in arrays.items():
        allowed = ("real floating", "integral") if name in LENGTHS else "real floating"
        if not xp.isdtype(value.dtype, allowed):
            raise BatchError(f"{name} must have a real floating-point dtype, got {value.dtype}")


def _check_shapes(arrays: dict[str, Array]) -> None:
    shape = tuple(arrays["policy_chosen"].shape)
    if not shape or shape[-1] == 0:
        raise BatchError(f"policy_chosen must have shape (..., n) with at least one pair, got {shape}")
    for name, value in arrays.items():
        if tuple(value.shape) != shape:
            raise BatchError(
                f"{name} has shape {tuple(value.shape)}, but policy_chosen has {shape}; "
                "all fields of a batch need one shape (use broadcast_to)"
            )


def _check_values(xp: Any, arrays: dict[str, Array]) -> None:
    for name, value in arrays.items():
        if name in LENGTHS:
            if xp.any(bad := ~(value > 0)):
                raise BatchError(f"{name} must be at least 1 (EOS counts), but is not in {bad_rows(bad)}")
        elif xp.any(bad := ~xp.isfinite(value)):
            kind = "NaN" if xp.any(xp.isnan(value)) else "infinite"
            raise BatchError(f"{name} is {kind} in {bad_rows(bad)}; every value must be finite")
        elif name.startswith("weight_") and xp.any(bad := value < 0):
            raise BatchError(f"{name} must be >= 0, but is negative in {bad_rows(bad)}")
        elif name.startswith("win_") and xp.any(bad := (value < 0) | (value > 1)):
            raise BatchError(f"{name} must be a probability in [0, 1], but is not in {bad_rows(bad)}")
