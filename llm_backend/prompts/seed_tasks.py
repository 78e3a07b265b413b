"""Seed tasks: instructions that people wrote, from which a model is asked for more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geometry.errors import nearest_name
from llm_backend.data.errors import DataError
from llm_backend.data.records import Record, read_records
from llm_backend.prompts.errors import PromptError


@dataclass(frozen=True, slots=True)
class SeedTask:
    """An instruction, and one instance of it: an ``input`` ("" for none) with the ``output`` that answers it."""

    instruction: str
    input: str = ""
    output: str | None = None
    name: str = ""

    @property
    def prompt(self) -> str:
        """The instruction, and its input after an empty line."""
        return f"{self.instruction}\n\n{self.input}" if self.input else self.instruction


def load_seed_tasks(path: str | Path) -> list[SeedTask]:
    """The tasks of a file in Self-Instruct's layout (.jsonl, .json, .csv, .parquet, .gz of them).

    A record has ``instruction`` and, where there is one, ``instances``: a list of {input, output}, of which the first
    is taken; a record with ``input`` and ``output`` of its own is read as well. ``name`` is kept; other columns are not
    read. Raises: PromptError that names the file, the record and what it lacks.
    """
    try:
        return seed_tasks_from_records(read_records(path), str(path))
    except DataError as error:
        raise PromptError(str(error)) from None


def seed_tasks_from_records(records: Sequence[Record], where: str) -> list[SeedTask]:
    """Tasks from records; see ``load_seed_tasks``."""
    if not records:
        raise PromptError(f"{where} has no records; give at least one seed task")
    return [_task(record, f"{where}, record {place}") for place, record in enumerate(records)]


def _task(record: Record, where: str) -> SeedTask:
    if "instruction" not in record:
        there = [str(name) for name in record]
        raise PromptError(
            f"{where} has no column 'instruction'; it has {', '.join(there) or 'none'}."
            f"{nearest_name('instruction', there)} Needed: instruction, and optionally instances or input and output"
        )
    instruction = _text(record["instruction"], where, "instruction")
    if not instruction.strip():
        raise PromptError(f"{where} has an empty instruction; write one or take the record out")
    first: Any = record
    if record.get("instances") is not None:
        instances = record["instances"]
        if not isinstance(instances, list) or not all(isinstance(each, dict) for each in instances):
            raise PromptError(f"{where}: instances is {instances!r:.60}; it must be a list of {{input, output}}")
        first = instances[0] if instances else {}
    output = first.get("output")
    return SeedTask(
        instruction.strip(),
        _text(first.get("input") or "", where, "input").strip(),
        None if output is None else _text(output, where, "output"),
        str(record.get("name") or ""),
    )


def _text(value: Any, where: str, name: str) -> str:
    if not isinstance(value, str):
        raise PromptError(f"{where}: {name} is {value!r:.60}; it must be text")
    return value
