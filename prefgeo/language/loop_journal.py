"""The stages of a language model's loop, and which of its policies stay on disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from llm_backend.loops import PolicyStore, StoredPolicy
from prefgeo.run_journal import RunJournal

Keep = Literal["all", "needed"]


class LoopJournal(RunJournal):
    """A ``RunJournal`` beside a ``store``, from which policies that no later stage reads are dropped, or not."""

    def __init__(self, store: PolicyStore, keep: Keep, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.store, self.keep, self._asked = store, keep, False

    def needs(self, policies: Sequence[StoredPolicy]) -> None:
        """Drop the others. The first call in a process drops nothing: a stage may have been trained and not evaluated
        when the process before was killed, and then its policy is in the store and not yet among these."""
        if self.keep == "needed" and self._asked:
            self.store.keep_only(policies)
        self._asked = True
