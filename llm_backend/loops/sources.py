"""Where the rows of a round come from: what a source is asked, and a source for each kind of data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from llm_backend.data import Preferences, flip_labels
from llm_backend.data.hashing import digest
from llm_backend.data.noise import FlipMode
from llm_backend.loops.errors import LoopError
from llm_backend.loops.policies import StoredPolicy
from llm_backend.loops.rows import RoundText
from llm_backend.token_options import TokenOptions

if TYPE_CHECKING:
    from llm_backend.loops.store import PolicyStore

TRAIN, HELD_OUT = "train", "heldout"


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What is asked for: the rows i, i + n, ... (``part`` (i, n)) of one draw, with labels flipped with ``flip``.

    (``seed``, ``kind``, ``round_index``, ``split``) name the draw; others are independent of it. ``tokens``: how text
    becomes tokens.
    """

    policy: StoredPolicy
    kind: str
    flip: float = 0.0
    round_index: int = 1
    split: str = TRAIN
    part: tuple[int, int] = (0, 1)
    seed: int = 0
    tokens: TokenOptions = field(default_factory=TokenOptions)

    def __post_init__(self) -> None:
        if not 0.0 <= self.flip <= 1.0:
            raise LoopError(f"the flip probability must be in [0, 1], got {self.flip}")
        if self.split not in (TRAIN, HELD_OUT):
            raise LoopError(f"the split of a draw must be {TRAIN} or {HELD_OUT}, got {self.split!r}")
        place, parts = self.part
        if not 0 <= place < parts:
            raise LoopError(f"part must be (i, n) with 0 <= i < n, got {self.part}")

    @property
    def stream(self) -> int:
        """The seed of what is random in this draw, below 2^48."""
        return int.from_bytes(digest("draw", self.seed, self.round_index, self.split)[:6], "big")

    def pick(self, rows: Sequence[Any]) -> list[Any]:
        """The part that was asked for."""
        return list(rows[self.part[0] :: self.part[1]])


class RoundSource(Protocol):
    """Gives the rows of a round as text."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of data that it has."""
        ...

    def rows(self, store: PolicyStore, draw: Draw) -> RoundText:
        """The rows of a draw. Raises: LoopError for what it cannot give."""
        ...


@dataclass(frozen=True)
class SourcesByKind:
    """Several sources as one, each asked for its own kinds; among those with the same kind, the first."""

    sources: tuple[RoundSource, ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of all of them."""
        return tuple(dict.fromkeys(kind for source in self.sources for kind in source.kinds))

    def rows(self, store: PolicyStore, draw: Draw) -> RoundText:
        """Of the source that has the kind."""
        check_kind(self, draw)
        return next(source for source in self.sources if draw.kind in source.kinds).rows(store, draw)


@dataclass(frozen=True, kw_only=True)
class FixedSource:
    """A preference dataset, whoever the policy is: kind ``fixed``: its pairs; ``supervised``: its chosen responses.

    ``rounds`` None: every round sees all of ``train``. T: round t sees the rows t - 1, t - 1 + T, ...
    Labels are flipped anew in every round, or by ``persistent`` always the same ones.
    """

    train: Preferences
    held_out: Preferences | None = None
    rounds: int | None = None
    flip_mode: FlipMode = "iid"

    @property
    def kinds(self) -> tuple[str, ...]:
        """Pairs, and demonstrations."""
        return ("fixed", "supervised")

    def rows(self, store: PolicyStore, draw: Draw) -> RoundText:
        """The rows of the dataset. Raises: LoopError where nothing is held out, or after the last round."""
        check_kind(self, draw)
        found = self.train if draw.split == TRAIN else self.held_out
        if found is None:
            raise LoopError("held-out rows are asked for, but the dataset has none; hold some out")
        kept = list(found.rows)
        if self.rounds is not None and draw.split == TRAIN:
            if draw.round_index > self.rounds:
                raise LoopError(
                    f"round {draw.round_index} is asked for, but the dataset is dealt out to {self.rounds} rounds"
                )
            kept = kept[draw.round_index - 1 :: self.rounds]
        first = draw.part[0] == 0  # what a reader left out is counted once
        chosen = Preferences(tuple(draw.pick(kept)), found.source, found.left_out if first else {})
        if draw.kind == "supervised":
            return RoundText(chosen, supervised=True)
        return RoundText(flipped(chosen, draw, self.flip_mode))


def flipped(preferences: Preferences, draw: Draw, mode: FlipMode) -> Preferences:
    """The rows with the label noise of the draw. Persistent noise is that of all rounds and splits."""
    if draw.flip == 0.0:
        return preferences
    seed = draw.seed if mode == "persistent" else draw.stream
    return flip_labels(preferences, draw.flip, seed, mode=mode, round_number=draw.round_index)


def check_kind(source: RoundSource, draw: Draw) -> None:
    """Raises LoopError for a kind that the source does not have."""
    if draw.kind not in source.kinds:
        raise LoopError(f"this source has data of the kind {', '.join(source.kinds)}, not {draw.kind!r}")


def one_number(value: Any, what: str) -> float:
    """A number, or an array with one (there is one run). Raises LoopError for more."""
    found = np.asarray(value, dtype=np.float64).reshape(-1)
    if found.size != 1 or not np.isfinite(found[0]):
        raise LoopError(f"{what} must be one finite number, as a language model is one run; got {value!r:.60}")
    return float(found[0])


def counted(prefix: str, counts: Mapping[str, int]) -> dict[str, int]:
    """Counts under longer names."""
    return {f"{prefix}{name}": int(number) for name, number in counts.items()}
