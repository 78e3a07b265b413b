"""How a model is asked for new tasks, and how they are read out of what it writes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from llm_backend.data.rows import Content

INTRODUCTION = "Below is a list of different tasks that a writing assistant was asked to do."
REQUEST = (
    "Add {count} new task(s) to the list, unlike those above. Begin each with its number, as in 'Task {first}:', and "
    "do not answer them."
)

_HEADER = re.compile(r"^[ \t*#-]*Task[ \t]+(\d+)[ \t*]*[:.][ \t*]*", re.MULTILINE | re.IGNORECASE)


@dataclass(frozen=True)
class Item:
    """One task of a list, and whether the list goes on or was ended after it (else its end may be missing)."""

    text: str
    whole: bool


def ask(examples: Sequence[str], count: int, *, chat: bool) -> Content:
    """The prompt: the examples as a numbered list, open at the next number; for a chat model, followed by a request.

    >>> print(ask(["Name a river.", "Add 2 and 3."], 1, chat=False))
    Below is a list of different tasks that a writing assistant was asked to do.
    <BLANKLINE>
    Task 1: Name a river.
    Task 2: Add 2 and 3.
    Task 3:
    """
    listed = "\n".join([INTRODUCTION, "", written_list(examples, 1)])
    first = len(examples) + 1
    if chat:
        return [{"role": "user", "content": f"{listed}\n\n{REQUEST.format(count=count, first=first)}"}]
    return f"{listed}\nTask {first}:"


def written_list(tasks: Sequence[str], first: int) -> str:
    """What a chat model should answer: the tasks, numbered from ``first``.

    >>> written_list(["Name a river."], 4)
    'Task 4: Name a river.'
    """
    return "\n".join(f"Task {number}: {' '.join(text.split())}" for number, text in enumerate(tasks, start=first))


def read(written: str, examples: int, count: int, *, chat: bool, finished: bool) -> list[Item]:
    """The first ``count`` tasks that continue the list after ``examples``, numbered without a gap.

    A model that continues text begins inside the first task; a chat model writes its number. The last task of an answer
    that did not end (``finished`` false) is not whole.
    """
    text = written if chat else f"Task {examples + 1}: {written}"
    headers = list(_HEADER.finditer(text))
    items: list[Item] = []
    for place, header in enumerate(headers[:count]):
        if int(header.group(1)) != examples + 1 + place:
            break
        followed = place + 1 < len(headers)
        end = headers[place + 1].start() if followed else len(text)
        items.append(Item(text[header.end() : end].strip(), followed or finished))
    return [item for item in items if item.text]
