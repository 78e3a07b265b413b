"""New instructions that a model writes after seed tasks: sampled, read, filtered, and kept on disk round by round."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_backend.data.hashing import digest
from llm_backend.data.rows import Content
from llm_backend.prompts.errors import PromptError
from llm_backend.prompts.fixed import FixedPrompts
from llm_backend.prompts.instruction_filters import FILTERS, without_answer
from llm_backend.prompts.journal import RoundJournal
from llm_backend.prompts.options import SelfInstructOptions
from llm_backend.prompts.rouge import TextPool
from llm_backend.prompts.source import PromptBatch, PromptSource, check_request
from llm_backend.prompts.task_lists import ask, read

if TYPE_CHECKING:
    from llm_backend.generation import Generator, Response


class SelfInstruct:
    """A prompt source that has the generator write new instructions from seed tasks (AIPO, Algorithm 1, SelfInstruct).

    Round t's instructions depend on the seed, the generator and those of earlier rounds. With a ``folder`` each batch
    of answers is kept there as it comes, so that a run that was killed goes on behind the last one and a finished
    round is never written again; without one, only this object remembers. New instructions are compared with all seed
    tasks, with those of earlier rounds and with each other. ``heldout`` gives the held-out prompts; the default is
    the held-out seed tasks. Keys count a round's instructions from 0.
    """

    def __init__(
        self,
        seed_tasks: Sequence[str],
        options: SelfInstructOptions | None = None,
        *,
        folder: Path | None = None,
        heldout: PromptSource | None = None,
    ) -> None:
        self.options = options or SelfInstructOptions()
        if not seed_tasks:
            raise PromptError("self-instruct has no seed tasks; give it at least one instruction")
        self.seed_tasks = tuple(seed_tasks)
        self.folder = folder
        as_prompts = [self._prompt(text) for text in self.seed_tasks]
        split = FixedPrompts(as_prompts, rounds="same", heldout_share=self.options.heldout_share)
        self.heldout: PromptSource = heldout or split
        self.in_context = tuple(self.seed_tasks[place] for place in sorted(split.side("train")))
        needed = self.options.examples - self.options.machine_examples
        if len(self.in_context) < needed:
            raise PromptError(
                f"self-instruct shows {needed} different seed tasks at a time but there are {len(self.in_context)} to "
                "show; give more seed tasks, or lower examples or heldout_share"
            )
        self._journals: dict[int, RoundJournal] = {}

    def prompts(
        self, round_index: int, n: int, *, generator: Generator, seed: int, split: str = "train"
    ) -> PromptBatch:
        """n new instructions of the round, written now or read from the folder; or n held-out prompts.

        Raises: PromptError where the patience ends before n instructions are found, saying what the filters took.
        """
        check_request(round_index, n, split)
        if split == "heldout":
            return self.heldout.prompts(round_index, n, generator=generator, seed=seed, split=split)
        earlier = [text for number in range(1, round_index) for text in self._written(number)]
        writing = _Writing(self, earlier, round_index, n, seed)
        journal = self._journal(round_index, writing.request())
        for batch in journal.batches:
            writing.replay(batch)
        while len(writing.accepted) < n:
            writing.give_up()
            journal.add(writing.step(generator))
        found = tuple(self._prompt(text) for text in writing.accepted)
        return PromptBatch(found, tuple(range(n)), {name: writing.counts[name] for name in FILTERS})

    def _prompt(self, text: str) -> Content:
        return [{"role": "user", "content": text}] if self.options.chat else text

    def _journal(self, round_index: int, request: dict[str, Any]) -> RoundJournal:
        if round_index not in self._journals:
            self._journals[round_index] = RoundJournal(self._path(round_index), request)
        return self._journals[round_index].check(request)

    def _path(self, round_index: int) -> Path | None:
        return None if self.folder is None else self.folder / f"instructions-{round_index:04d}.jsonl"

    def _written(self, round_index: int) -> list[str]:
        """What was accepted in an earlier round; nothing where none was written."""
        path = self._path(round_index)
        if round_index not in self._journals and path is not None and path.exists():
            self._journals[round_index] = RoundJournal(path, {})
        journal = self._journals.get(round_index)
        return [text for batch in journal.batches for text in batch["accepted"]] if journal else []


class _Writing:
    """The state of one round: what is accepted so far, and what each filter took."""

    def __init__(self, source: SelfInstruct, earlier: list[str], round_index: int, n: int, seed: int) -> None:
        self.source, self.options, self.earlier = source, source.options, earlier
        self.round_index, self.n, self.seed = round_index, n, seed
        self.accepted: list[str] = []
        self.counts: Counter[str] = Counter()
        self.calls = 0
        known = [*source.seed_tasks, *earlier]
        self.exact = {_plain(text) for text in known}
        similarity = self.options.filters.similarity
        self.pool = None if similarity is None else TextPool(similarity, known)

    def request(self) -> dict[str, Any]:
        """What the round was asked, for its journal: the same request, the same instructions."""
        return {
            "round": self.round_index,
            "number of prompts": self.n,
            "seed": self.seed,
            "set of options": self.options.identity(),
            "set of seed tasks": digest(*self.source.seed_tasks).hex(),
            "past (the instructions of earlier rounds)": digest(*self.earlier).hex(),
        }

    def replay(self, batch: dict[str, Any]) -> None:
        """Take over a batch that was written before."""
        for text in batch["accepted"]:
            self._accept(text)
        self.counts.update(batch["counts"])
        self.calls += self.options.calls

    def step(self, generator: Generator) -> dict[str, Any]:
        """Ask for one batch of answers and read them."""
        options, keys = self.options, list(range(self.calls, self.calls + self.options.calls))
        shown = [self._examples(key) for key in keys]
        contexts = [ask(examples, options.new_per_call, chat=options.chat) for examples in shown]
        draw = int.from_bytes(digest("self-instruct", self.seed, self.round_index)[:4], "big")
        answers = generator.generate(contexts, options.sampling(), seed=draw, keys=keys)
        before, counts = len(self.accepted), Counter[str]()
        for examples, (answer,) in zip(shown, answers, strict=True):
            counts.update(self._take(answer, len(examples)))
        self.calls += options.calls
        self.counts.update(counts)
        return {"accepted": self.accepted[before:], "counts": dict(counts)}

    def give_up(self) -> None:
        """Raises ``PromptError`` once the patience is at its end."""
        if self.calls < self.options.patience * -(-self.n // self.options.new_per_call):
            return
        taken = ", ".join(f"{name} {self.counts[name]}" for name in FILTERS if self.counts[name])
        raise PromptError(
            f"round {self.round_index}: self-instruct found {len(self.accepted)} of {self.n} new instructions in "
            f"{self.calls} calls ({taken or 'nothing was written'}); use a model that follows instructions better, "
            "loosen the filters, or raise the patience"
        )

    def _examples(self, call: int) -> list[str]:
        """Tasks for one context, in random order: machine-written ones where there are any, else seed tasks."""
        rng = np.random.default_rng([*digest("self-instruct examples", self.seed, self.round_index, call)])
        machine = [*self.earlier, *self.accepted] if self.options.machine_examples else []
        count = min(self.options.machine_examples, len(machine))
        people = min(self.options.examples - count, len(self.source.in_context))
        chosen = [machine[place] for place in rng.choice(len(machine), count, replace=False)] if count else []
        chosen += [self.source.in_context[place] for place in rng.choice(len(self.source.in_context), people, False)]
        return [chosen[place] for place in rng.permutation(len(chosen))]

    def _take(self, answer: Response, shown: int) -> Counter[str]:
        """Accept what passes; one count for each item that does not."""
        options, counts = self.options, Counter[str]()
        items = read(answer.text, shown, options.new_per_call, chat=options.chat, finished=answer.finished)
        if not items:
            counts["unparseable"] += 1
        for item in items:
            text = without_answer(item.text)
            reason = self._reason(text) if item.whole else "cut_off"
            if reason is None and len(self.accepted) >= self.n:
                reason = "surplus"
            if reason is None:
                self._accept(text)
            else:
                counts[reason] += 1
        return counts

    def _reason(self, text: str) -> str | None:
        found = self.options.filters.verdict(text)
        if found is None and _plain(text) in self.exact:
            return "repeats"
        if found is None and self.pool is not None and self.pool.similar(text) is not None:
            return "near_duplicates"
        return found

    def _accept(self, text: str) -> None:
        self.accepted.append(text)
        self.exact.add(_plain(text))
        if self.pool is not None:
            self.pool.add(text)


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().lower()
