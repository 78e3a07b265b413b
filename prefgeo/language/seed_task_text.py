"""Seed tasks as the texts of a recipe: what a model from scratch learns before it writes tasks and answers of its own.

A held-out task is never shown, imitated or written after. Each task's pair is its own answer over another task's, so
that accuracy says whether a model tells which of two answers belongs to a task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from geometry.errors import nearest_name
from llm_backend.data import DataError, PreferenceRow, Preferences, ResponseSet
from llm_backend.data.hashing import digest, pick, uniform
from llm_backend.data.rows import Message
from llm_backend.prompts import SeedTask, load_seed_tasks
from llm_backend.prompts.task_lists import ask, written_list


@dataclass(frozen=True, kw_only=True)
class SeedTaskOptions:
    """What SFT imitates: ``lists`` times the request to go on with a list of ``shown`` random training tasks by
    ``written`` further ones, and ``repeats`` times each task's own answer.

    Raises: DataError for a number below 1.
    """

    lists: int = 1000
    shown: int = 3
    written: int = 2
    repeats: int = 4

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> SeedTaskOptions:
        """Options out of a recipe. Raises: DataError for an unknown name, or what is no whole number above 0."""
        known = [each.name for each in fields(cls)]
        for name, value in values.items():
            if name not in known:
                near = nearest_name(str(name), known)
                raise DataError(f"seed tasks have no option {name!r}.{near} They have {', '.join(known)}")
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise DataError(f"{name} of seed tasks is {value!r:.40}; it must be a whole number, at least 1")
        return cls(**values)


@dataclass(frozen=True)
class TaskTexts:
    """``train`` and ``held_out``: a row for each task that has an answer; ``supervised``: what SFT imitates."""

    train: Preferences
    held_out: Preferences
    supervised: list[ResponseSet]


def split_tasks(path: str | Path, options: SeedTaskOptions, *, test_fraction: float, seed: int) -> TaskTexts:
    """The tasks of a file, parted by the hash of their instructions. All contents are messages of a chat.

    A row's prompt is the task with its input, chosen is its answer, rejected the answer of another task on the same
    side. Tasks without an answer, or whose answer another one has too, are left out and counted.
    Raises: PromptError for a file that cannot be read; DataError where a side has fewer than two tasks, or training
    fewer than a list needs.
    """
    everything = load_seed_tasks(path)
    sides: tuple[list[SeedTask], list[SeedTask]] = ([], [])
    for task in everything:
        sides[uniform("held out", seed, task.instruction) < test_fraction].append(task)
    train, held_out = (_answered(side) for side in sides)
    for name, tasks in (("train", train), ("held_out", held_out)):
        if len(tasks) < 2:
            raise DataError(f"{path}: {len(tasks)} seed tasks with answers fall into {name}; it needs 2 or more")
    asked = options.shown + options.written
    if len(train) < asked:
        raise DataError(f"{path}: a list of {asked} tasks cannot be made of {len(train)}; lower shown or written")
    rows = _rows(train, str(path), len(sides[0]) - len(train), seed)
    tested = _rows(held_out, str(path), len(sides[1]) - len(held_out), seed)
    return TaskTexts(rows, tested, [*_lists(train, options, seed), *_answers(train, options)])


def instruction(content: Any) -> str:
    """The instruction of a task's prompt: what is before its input.

    >>> instruction([{"role": "user", "content": "Translate into French.\\n\\nGood day"}])
    'Translate into French.'
    """
    text: str = content if isinstance(content, str) else content[-1]["content"]
    return text.partition("\n\n")[0].strip()


def _answered(tasks: Sequence[SeedTask]) -> list[SeedTask]:
    """Those with an answer that no earlier one has."""
    first: dict[str, SeedTask] = {}
    for task in tasks:
        if task.output is not None and task.output.strip():
            first.setdefault(task.output.strip(), task)
    return list(first.values())


def _rows(tasks: Sequence[SeedTask], where: str, left_out: int, seed: int) -> Preferences:
    rows = []
    for place, task in enumerate(tasks):
        other = (place + 1 + pick(len(tasks) - 1, "answer of another task", seed, task.prompt)) % len(tasks)
        rows.append(PreferenceRow(place, _user(task.prompt), _assistant(task), _assistant(tasks[other])))
    return Preferences(tuple(rows), where, {"without an answer of its own": left_out})


def _lists(tasks: Sequence[SeedTask], options: SeedTaskOptions, seed: int) -> list[ResponseSet]:
    found = []
    for number in range(options.lists):
        rng = np.random.default_rng([*digest("lists of seed tasks", seed, number)])
        places = rng.choice(len(tasks), options.shown + options.written, replace=False)
        said = [instruction(tasks[place].prompt) for place in places]
        asked = ask(said[: options.shown], options.written, chat=True)
        written = written_list(said[options.shown :], options.shown + 1)
        found.append(ResponseSet(number, asked, ([{"role": "assistant", "content": written}],), 0))
    return found


def _answers(tasks: Sequence[SeedTask], options: SeedTaskOptions) -> list[ResponseSet]:
    return [
        ResponseSet(options.lists + number, _user(task.prompt), (_assistant(task),), 0)
        for number, task in enumerate(list(tasks) * options.repeats)
    ]


def _user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def _assistant(task: SeedTask) -> list[Message]:
    return [{"role": "assistant", "content": str(task.output).strip()}]
