"""Seed tasks as data: who is held out, what SFT imitates, which answers make a pair; the rule that ranks by words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_backend.data import DataError
from llm_backend.prompts.task_lists import read
from prefgeo.language.seed_task_text import SeedTaskOptions, instruction, split_tasks
from prefgeo.language.word_reward import word_reward

OPTIONS = SeedTaskOptions(lists=20, shown=3, written=2, repeats=2)


def tasks(path: Path, n: int = 40) -> Path:
    """Tasks with an input and an answer; the last two answers are one, and a further task has none."""
    rows: list[dict[str, Any]] = [
        {"instruction": f"Name thing {i}.", "instances": [{"input": f"of {i}", "output": f"thing {min(i, n - 2)}"}]}
        for i in range(n)
    ]
    rows.append({"instruction": "Say nothing.", "instances": [{"input": "", "output": " "}]})
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_a_held_out_task_is_never_imitated(tmp_path: Path) -> None:
    found = split_tasks(tasks(tmp_path / "tasks.jsonl"), OPTIONS, test_fraction=0.3, seed=0)
    sides = [{instruction(row.prompt) for row in rows.rows} for rows in (found.train, found.held_out)]
    assert not sides[0] & sides[1] and len(sides[0]) + len(sides[1]) >= 38
    seen = json.dumps([[each.prompt, each.responses] for each in found.supervised])
    assert not any(f"{name[:-1]}." in seen for name in sides[1])
    left_out = sum(rows.left_out["without an answer of its own"] for rows in (found.train, found.held_out))
    assert len(found.train) + len(found.held_out) + left_out == 41


def test_a_pair_is_the_own_answer_over_that_of_another_task(tmp_path: Path) -> None:
    found = split_tasks(tasks(tmp_path / "tasks.jsonl"), OPTIONS, test_fraction=0.3, seed=0)
    own = {row.prompt[-1]["content"]: row.chosen[0]["content"] for row in found.train.rows}  # type: ignore[index]
    for row in found.train.rows:
        assert row.rejected != row.chosen and row.rejected[0]["content"] in own.values()  # type: ignore[index]


def test_lists_read_back_as_the_tasks_that_were_written(tmp_path: Path) -> None:
    found = split_tasks(tasks(tmp_path / "tasks.jsonl"), OPTIONS, test_fraction=0.3, seed=0)
    known = {instruction(row.prompt) for row in found.train.rows}
    for each in found.supervised[: OPTIONS.lists]:
        text = each.responses[0][0]["content"]  # type: ignore[index]
        items = read(text, OPTIONS.shown, OPTIONS.written, chat=True, finished=True)
        assert len(items) == 2 and {item.text for item in items} <= known
    assert len(found.supervised) == OPTIONS.lists + OPTIONS.repeats * len(found.train)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"list": 3}, "no option 'list'. Did you mean 'lists'"),
        ({"lists": 0}, "lists of seed tasks is 0"),
        ({"repeats": True}, "repeats of seed tasks is True"),
    ],
)
def test_options_that_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said.replace(".", r"\.")):
        SeedTaskOptions.of(values)


def test_too_few_tasks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a list of 50 tasks cannot be made"):
        split_tasks(tasks(tmp_path / "t.jsonl"), SeedTaskOptions(shown=30, written=20), test_fraction=0.3, seed=0)
    with pytest.raises(DataError, match="fall into held_out; it needs 2 or more"):
        split_tasks(tasks(tmp_path / "t.jsonl"), OPTIONS, test_fraction=0.001, seed=0)


@pytest.mark.parametrize(
    ("response", "worth"),
    [
        ("", 0.0), ("?!", 0.0),
        ("europe river name", 1.0),  # all three long words of the prompt, and none twice
        ("a b c d", 0.5), ("a a a a", 0.125), ("river river", (1 / 3 + 1 / 2) / 2),
    ],
)  # fmt: skip
def test_the_rule_counts_named_words_and_different_ones(response: str, worth: float) -> None:
    assert word_reward("Name a river of Europe.", response) == pytest.approx(worth)
    assert word_reward([{"role": "user", "content": "Name a river of Europe."}], response) == pytest.approx(worth)
