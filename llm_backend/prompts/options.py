"""The options of self-instruct: contexts, sampling, how long to try, and the filters; also out of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from geometry.errors import nearest_name
from llm_backend.data.hashing import digest
from llm_backend.prompts.errors import PromptError
from llm_backend.prompts.instruction_filters import InstructionFilters

if TYPE_CHECKING:
    from llm_backend.generation import Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfInstructOptions:
    """How instructions are written. Sampling defaults are AIPO's code (arXiv:2409.08845).

    ``examples`` tasks in context, of which up to ``machine_examples`` are ones that a model wrote before (AIPO: none;
    Self-Instruct, arXiv:2212.10560: 2 of 8); at most ``new_per_call`` tasks are read from an answer; ``calls`` prompts
    go to the generator at a time; after ``patience`` times as many calls as n instructions need at best, it gives up.
    ``chat``: the model gets messages, and so do those who use the new prompts. ``heldout_share`` of the seed tasks
    never come into a context: they are the held-out prompts. Raises: PromptError for a value outside its range.
    """

    examples: int = 8
    machine_examples: int = 0
    new_per_call: int = 2
    temperature: float = 0.5
    top_p: float = 0.9
    max_new_tokens: int = 512
    batch_size: int = 16
    calls: int = 16
    patience: int = 20
    chat: bool = False
    heldout_share: float = 0.0
    filters: InstructionFilters = field(default_factory=InstructionFilters)

    def __post_init__(self) -> None:
        for name in ("examples", "new_per_call", "calls", "patience"):
            if getattr(self, name) < 1:
                raise PromptError(f"{name} of self-instruct must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.machine_examples < self.examples:
            raise PromptError(
                f"machine_examples must be at least 0 and below examples ({self.examples}), got {self.machine_examples}"
            )
        if not 0.0 <= self.temperature < float("inf") or not 0.0 < self.top_p <= 1.0 or self.max_new_tokens < 1:
            raise PromptError(
                "self-instruct samples at a temperature >= 0, with top_p in (0, 1] and at least 1 new token, got "
                f"{self.temperature}, {self.top_p} and {self.max_new_tokens}"
            )

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> SelfInstructOptions:
        """Options from a recipe's plain values; ``filters`` is a mapping too. Raises PromptError for unknown names."""
        given = dict(values)
        if "filters" in given:
            given["filters"] = InstructionFilters(**_known(given["filters"], InstructionFilters, "filters"))
        return cls(**_known(given, cls, "self-instruct"))

    def identity(self) -> str:
        """A hash of all that decides what is written: not of the patience, nor of how many are generated at once."""
        deciding = {name: value for name, value in asdict(self).items() if name not in ("patience", "batch_size")}
        return digest(repr(sorted(deciding.items()))).hex()

    def sampling(self) -> Sampling:
        """How the generator is to sample."""
        from llm_backend.generation import Sampling

        return Sampling(
            candidates=1, temperature=self.temperature, top_p=self.top_p, max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
        )  # fmt: skip


def _known(values: Any, kind: type, where: str) -> dict[str, Any]:
    """The values by name, lists as tuples. Raises PromptError for an unknown name, or a value of another type."""
    options = {each.name: each for each in fields(kind)}
    if not isinstance(values, Mapping):
        raise PromptError(f"{where} is {values!r:.60}; give names and values: {', '.join(options)}")
    found = {}
    for name, value in values.items():
        if name not in options:
            near = nearest_name(str(name), options)
            raise PromptError(f"{where} has no option {name!r}.{near} It has {', '.join(options)}")
        found[name] = tuple(value) if isinstance(value, list) else value
        allowed = _TYPES.get(str(options[name].type))
        if allowed is not None and type(found[name]) not in allowed:
            raise PromptError(f"{where}: {name} is {value!r:.60}; it must be of type {options[name].type}")
    return found


_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "bool": (bool,),
    "float": (float, int),
    "float | None": (float, int, type(None)),
    "tuple[str, ...]": (tuple,),
}
