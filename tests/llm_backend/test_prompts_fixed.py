"""Prompts of a list and seed tasks of a file: disjoint sides and rounds, layouts, messages."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_backend.prompts import FixedPrompts, PromptError, load_seed_tasks, seed_tasks_from_records

PROMPTS = [f"prompt {number}" for number in range(200)]


@given(st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=60), st.floats(0.0, 0.99), st.integers(0, 5))
def test_every_prompt_is_on_one_side_once(pool: list[str], share: float, seed: int) -> None:
    source = FixedPrompts(pool, heldout_share=share, seed=seed)
    train, heldout = ([pool[place] for place in source.side(split)] for split in ("train", "heldout"))
    assert sorted(train + heldout) == sorted(set(pool))


def test_a_side_does_not_depend_on_the_rest_of_the_list() -> None:
    whole, half = FixedPrompts(PROMPTS, heldout_share=0.3), FixedPrompts(PROMPTS[::-2], heldout_share=0.3)
    held = {PROMPTS[place] for place in whole.side("heldout")}
    assert {half.pool[place] for place in half.side("heldout")} == held & set(half.pool)
    assert 40 < len(held) < 80  # 60 expected, sd 6.5


def test_rounds_take_disjoint_parts_or_the_same() -> None:
    source = FixedPrompts(PROMPTS, heldout_share=0.2)
    rounds = [source.prompts(number, 50) for number in (1, 2, 3)]
    assert len({key for batch in rounds for key in batch.keys}) == 150
    assert all(
        PROMPTS[key] == prompt for batch in rounds for key, prompt in zip(batch.keys, batch.prompts, strict=True)
    )
    held = {key for number in (1, 2) for key in source.prompts(number, 10, split="heldout").keys}
    assert len(held) == 20 and not held & {key for batch in rounds for key in batch.keys}
    same = FixedPrompts(PROMPTS, rounds="same", heldout_share=0.2)
    assert same.prompts(1, 50) == same.prompts(9, 50) == rounds[0]
    assert FixedPrompts(PROMPTS, seed=1).prompts(1, 50).keys != FixedPrompts(PROMPTS).prompts(1, 50).keys


def test_repeats_count_and_messages_are_prompts_too() -> None:
    chat = [[{"role": "user", "content": text}] for text in ("a", "b", "a")]
    batch = FixedPrompts(chat).prompts(1, 2)
    assert batch.counts == {"repeats": 1} and sorted(batch.keys) == [0, 1] and len(batch) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedPrompts([]), "there are no prompts in the list"),
        (lambda: FixedPrompts(["a"], rounds="other"), "rounds must be 'disjoint' or 'same', got 'other'"),  # type: ignore[arg-type]
        (lambda: FixedPrompts(["a"], heldout_share=1.0), r"the held-out share must be in \[0, 1\), got 1.0"),
        (lambda: FixedPrompts(["a"]).prompts(0, 1), "rounds count from 1, got round 0"),
        (lambda: FixedPrompts(["a"]).prompts(1, 0), "ask for at least 1 prompt, got 0"),
        (lambda: FixedPrompts(["a"]).prompts(1, 1, split="test"), "unknown split 'test' of prompts"),
        (lambda: FixedPrompts(["a"]).prompts(1, 1, split="heldout"), "none are held out; set heldout_share above 0"),
        (
            lambda: FixedPrompts(["a", "b", "a"]).prompts(2, 2),
            r"round 2 needs the training prompts 2 to 3 but there are 2 \(3 given, 1 of them repeats\); ask for fewer",
        ),
        (
            lambda: FixedPrompts(["a"], rounds="same").prompts(2, 2),
            r"2 prompts are asked for but there are 1 training prompts \(1 given\); ask for fewer",
        ),
    ],
)
def test_what_cannot_be_given_is_said(make: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        make()


def test_seed_tasks_have_an_instruction_and_perhaps_an_instance() -> None:
    tasks = seed_tasks_from_records(
        [
            {"instruction": " Add. ", "instances": [{"input": "2 3", "output": "5"}, {"input": "1 1", "output": "2"}]},
            {"instruction": "Name a river.", "instances": [{"input": "", "output": "Rhine"}], "name": "river"},
            {"instruction": "Go on.", "instances": []},
            {"instruction": "Say.", "input": "a", "output": "b"},
        ],
        "here",
    )
    assert [task.prompt for task in tasks] == ["Add.\n\n2 3", "Name a river.", "Go on.", "Say.\n\na"]
    assert [task.output for task in tasks] == ["5", "Rhine", None, "b"] and tasks[1].name == "river"


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "here has no records; give at least one seed task"),
        (
            [{"instrution": "x", "name": "y"}],
            "record 0 has no column 'instruction'; it has instrution, name. Did you mean",
        ),
        ([{"instruction": "x"}, {"instruction": " "}], "here, record 1 has an empty instruction"),
        ([{"instruction": 3}], "here, record 0: instruction is 3; it must be text"),
        ([{"instruction": "x", "instances": "y"}], "instances is 'y'; it must be a list of {input, output}"),
        ([{"instruction": "x", "instances": [{"input": ["a"]}]}], r"input is \['a'\]; it must be text"),
    ],
)
def test_bad_seed_tasks_are_named(records: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        seed_tasks_from_records(records, "here")


def test_seed_files_that_are_absent_or_damaged_are_named(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"there is no file .*seeds\.jsonl"):
        load_seed_tasks(tmp_path / "seeds.jsonl")
    (tmp_path / "seeds.jsonl").write_text(json.dumps({"instruction": "x"}) + '\n{"instr')
    with pytest.raises(PromptError, match="line 2 is not JSON"):
        load_seed_tasks(tmp_path / "seeds.jsonl")


@pytest.mark.data
def test_the_public_seed_file_is_read_whole() -> None:
    folder = os.environ.get("PREFGEO_DATA")
    if folder is None:
        pytest.skip("PREFGEO_DATA is not set")
    tasks = load_seed_tasks(Path(folder) / "self_instruct_seed_tasks.jsonl")
    assert len(tasks) == 175 and all(task.output for task in tasks)
    assert tasks[1].prompt == "What is the relation between the given pairs?\n\nNight : Day :: Right : Left"
