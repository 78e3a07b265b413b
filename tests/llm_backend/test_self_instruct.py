"""Self-instruct with a scripted writer: contexts, parsing, each filter, continuation after kills, messages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_backend.data.rows import Content
from llm_backend.generation import Response, Sampling
from llm_backend.prompts import FixedPrompts, InstructionFilters, PromptError, SelfInstruct, SelfInstructOptions
from llm_backend.prompts.instruction_filters import FILTERS, without_answer
from llm_backend.prompts.task_lists import Item, ask, read

SEEDS = [f"Explain the number {word} to a child of {age} years." for age, word in enumerate(
    ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"], start=3)]  # fmt: skip
NOUNS = [
    "river",
    "mountain",
    "violin",
    "bread",
    "winter",
    "bridge",
    "garden",
    "letter",
    "engine",
    "harbour",
    "castle",
    "forest",
]
VERBS = ["Describe", "Compare", "Translate", "Summarise", "Criticise", "Invent", "Question", "Defend", "Rewrite"]


class Writer:
    """Answers each context with tasks made of words that (seed, key) decide; counts how often it is asked."""

    def __init__(self, answers: Sequence[str] | None = None, finished: bool = True) -> None:
        self.answers, self.finished, self.asked = answers, finished, list[Content]()
        self.sampling: Sampling | None = None

    def generate(
        self, prompts: Sequence[Content], sampling: Sampling, *, seed: int, keys: Sequence[int] | None = None
    ) -> list[list[Response]]:
        assert keys is not None
        self.asked += prompts
        self.sampling = sampling
        texts = [self._written(prompt, seed, key) for prompt, key in zip(prompts, keys, strict=True)]
        return [[Response(text, (1, 2), self.finished)] for text in texts]

    def _written(self, prompt: Content, seed: int, key: int) -> str:
        if self.answers is not None:
            return self.answers[key % len(self.answers)]
        rng = np.random.default_rng([seed, key])
        return f" {_task(rng)}\nTask {_number(prompt) + 1}: {_task(rng)}\n"


def _task(rng: np.random.Generator) -> str:
    verb, (one, two, three) = rng.choice(VERBS), rng.choice(NOUNS, 3, replace=False)
    return f"{verb} the {one} beside a {two} and its {three}."


def _number(prompt: Content) -> int:
    return int(str(prompt).rsplit("Task ", 1)[1].split(":")[0])


def source(folder: Path | None = None, seeds: Sequence[str] = SEEDS, **options: Any) -> SelfInstruct:
    return SelfInstruct(seeds, SelfInstructOptions(**{"examples": 4, "calls": 3, **options}), folder=folder)


def test_new_instructions_come_with_every_count_and_differ() -> None:
    batch = source().prompts(1, 20, generator=Writer(), seed=0)
    assert len(set(batch.prompts)) == 20 and batch.keys == tuple(range(20))
    assert tuple(batch.counts) == FILTERS and batch.counts["unparseable"] == 0
    items = 20 + sum(batch.counts.values())
    assert items % (3 * 2) == 0  # whole batches of three calls with two tasks each


def test_contexts_are_seed_tasks_and_machine_tasks_only_where_asked() -> None:
    writer = Writer()
    people = source()
    people.prompts(1, 20, generator=writer, seed=0)
    people.prompts(2, 20, generator=writer, seed=0)
    shown = [line.split(": ", 1)[1] for prompt in writer.asked for line in str(prompt).splitlines() if ": " in line]
    assert set(shown) == set(SEEDS)
    writer = Writer()
    mixed = source(machine_examples=1)
    first = mixed.prompts(1, 20, generator=writer, seed=0)
    for prompt in writer.asked[:3]:
        assert sum(f": {text}\n" in f"{prompt}\n" for text in SEEDS) == 4  # nothing was written yet
    begun = len(writer.asked)
    mixed.prompts(2, 5, generator=writer, seed=0)
    for prompt in writer.asked[begun : begun + 3]:
        assert sum(f": {text}\n" in f"{prompt}\n" for text in SEEDS) == 3
        assert sum(f": {text}\n" in f"{prompt}\n" for text in first.prompts) == 1


def test_later_rounds_never_repeat_earlier_ones() -> None:
    mine = source(filters=InstructionFilters(similarity=None))
    rounds = [mine.prompts(number, 15, generator=Writer(), seed=0).prompts for number in (1, 2, 3)]
    assert len({text for each in rounds for text in each}) == 45


def test_seed_and_round_decide_and_the_same_request_is_written_once() -> None:
    one, writer = source(), Writer()
    first = one.prompts(1, 8, generator=writer, seed=0)
    asked = len(writer.asked)
    assert one.prompts(1, 8, generator=writer, seed=0) == first and len(writer.asked) == asked
    assert source().prompts(1, 8, generator=Writer(), seed=0) == first
    assert source().prompts(1, 8, generator=Writer(), seed=1) != first
    assert source().prompts(2, 8, generator=Writer(), seed=0) != first
    assert writer.sampling == Sampling(temperature=0.5, top_p=0.9, max_new_tokens=512, batch_size=16)


class Killed(Exception):
    """Stands for the end of the process."""


class Mortal(Writer):
    """Dies at a given request."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def generate(self, *args: Any, **kwargs: Any) -> list[list[Response]]:
        if self.left == 0:
            raise Killed
        self.left -= 1
        return super().generate(*args, **kwargs)


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("at", [0, 1, 4])
def test_a_killed_run_goes_on_and_ends_the_same(tmp_path: Path, at: int, torn: bool) -> None:
    options: dict[str, Any] = {"machine_examples": 1, "calls": 2}
    whole, counted = source(tmp_path / "whole", **options), Writer()
    wanted = [whole.prompts(number, 12, generator=counted, seed=3) for number in (1, 2)]
    path = tmp_path / "killed" / "instructions-0002.jsonl"
    source(tmp_path / "killed", **options).prompts(1, 12, generator=Writer(), seed=3)
    with pytest.raises(Killed):
        source(tmp_path / "killed", **options).prompts(2, 12, generator=Mortal(at), seed=3)
    assert len(path.read_text().splitlines()) == 1 + at
    if torn:
        with path.open("a") as stream:
            stream.write('{"accepted": ["Half of a')
    writer = Writer()
    again = source(tmp_path / "killed", **options)
    assert [again.prompts(number, 12, generator=writer, seed=3) for number in (1, 2)] == wanted
    assert path.read_bytes() == (tmp_path / "whole" / "instructions-0002.jsonl").read_bytes()
    first_round = len((tmp_path / "whole" / "instructions-0001.jsonl").read_text().splitlines()) - 1
    assert len(writer.asked) == len(counted.asked) - 2 * (first_round + at)  # nothing was asked twice


ANSWERS = {
    "unparseable": "",
    "too_short": " Name one river.",
    "too_long": " " + " ".join(["word"] * 200),
    "banned_words": " Draw a large circle around every word.",
    "banned_start": " Write a program that adds two numbers.",
    "language": " Erkläre Bäume, Flüße, Öle, Äpfel, Übung, Ähre.",
    "repeats": f" {SEEDS[0].upper()}",
    "near_duplicates": " Explain the number one to a child of 4 years.",
}


@pytest.mark.parametrize("name", ANSWERS)
def test_each_filter_counts_under_its_name(name: str) -> None:
    with pytest.raises(PromptError, match=rf"found 0 of 1 new instructions in 3 calls \({name} 3\); use a model that"):
        source(patience=1).prompts(1, 1, generator=Writer([ANSWERS[name]]), seed=0)


def test_an_instruction_repeats_what_was_accepted_before() -> None:
    writer, filters = Writer([" Describe the harbour of a small town."]), InstructionFilters(similarity=None)
    with pytest.raises(PromptError, match=r"found 1 of 2 new instructions in 3 calls \(repeats 2\)"):
        source(patience=3, filters=filters).prompts(1, 2, generator=writer, seed=0)


def test_cut_off_answers_keep_the_tasks_before_the_last() -> None:
    answer = " Describe the harbour of a small town.\nTask 6: Invent a name for a"
    batch = source(calls=1).prompts(1, 1, generator=Writer([answer], finished=False), seed=0)
    assert batch.prompts == ("Describe the harbour of a small town.",)
    assert batch.counts["cut_off"] == 1
    open_end = Writer([" Describe the harbour of a small"], finished=False)
    with pytest.raises(PromptError, match=r"\(cut_off 3\)"):
        source(patience=1).prompts(1, 1, generator=open_end, seed=0)


def test_what_comes_after_enough_is_surplus() -> None:
    batch = source(calls=4).prompts(1, 1, generator=Writer(), seed=0)
    assert batch.counts["surplus"] == 7 and sum(batch.counts.values()) == 7


def test_chat_models_get_messages_and_give_messages() -> None:
    writer = Writer(["Task 5: Describe the harbour of a small town.\nTask 6: Compare bread and winter in one line."])
    batch = source(chat=True, calls=1).prompts(1, 2, generator=writer, seed=0)
    assert batch.prompts[0] == [{"role": "user", "content": "Describe the harbour of a small town."}]
    (message,) = writer.asked[0]
    assert message["role"] == "user" and "Task 4: " in message["content"] and "'Task 5:'" in message["content"]


def test_held_out_prompts_are_seed_tasks_that_no_context_shows() -> None:
    mine, writer = source(heldout_share=0.4), Writer()
    held = FixedPrompts(SEEDS, rounds="same", heldout_share=0.4).side("heldout")
    assert 0 < len(held) < 7
    batch = mine.prompts(3, len(held), generator=writer, seed=0, split="heldout")
    assert sorted(batch.prompts) == sorted(SEEDS[place] for place in held) and not writer.asked
    mine.prompts(1, 30, generator=writer, seed=0)
    assert not any(str(text) in str(prompt) for text in batch.prompts for prompt in writer.asked)
    other = FixedPrompts(["other prompt"], heldout_share=0.999)
    given = SelfInstruct(SEEDS, heldout=other).prompts(1, 1, generator=writer, seed=0, split="heldout")
    assert given.prompts == ("other prompt",)


@pytest.mark.parametrize(
    ("written", "chat", "finished", "items"),
    [
        (" A b.\nTask 4: C d.\nTask 5: E.", False, True, [Item("A b.", True), Item("C d.", True)]),
        (" A b.\nTask 4: C d.", False, False, [Item("A b.", True), Item("C d.", False)]),
        (" A b.\nTask 7: C d.", False, True, [Item("A b.", True)]),
        ("\nTask 4: C d.", False, True, [Item("C d.", True)]),
        (" A\n b.", False, True, [Item("A\n b.", True)]),
        ("A b. Task 4: no line of its own", False, True, [Item("A b. Task 4: no line of its own", True)]),
        ("Sure!\n**Task 3:** A b.\n- task 4. C d.", True, True, [Item("A b.", True), Item("C d.", True)]),
        ("Here you are: A b.", True, True, []),
        ("Task 4: C d.", True, True, []),
    ],
)
def test_lists_are_read(written: str, chat: bool, finished: bool, items: list[Item]) -> None:
    assert read(written, 2, 2, chat=chat, finished=finished) == items


def test_contexts_put_each_task_on_one_line() -> None:
    assert str(ask(["a\n b", "c"], 2, chat=False)).endswith("\nTask 1: a b\nTask 2: c\nTask 3:")


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Name a river.\nOutput: Rhine", "Name a river."),
        ("Add two numbers. A: 5", "Add two numbers."),
        ("Do as here. Example: 1 Output: 2", "Do as here. Example: 1 Output: 2"),
        ("Name  the\nsolution of it", "Name the solution of it"),
        ("Answer: none", ""),
    ],
)
def test_answers_are_taken_away(text: str, plain: str) -> None:
    assert without_answer(text) == plain


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SelfInstruct([]), "self-instruct has no seed tasks"),
        (lambda: SelfInstruct(SEEDS[:3]), "shows 8 different seed tasks at a time but there are 3 to show"),
        (lambda: source(calls=0), "calls of self-instruct must be at least 1, got 0"),
        (lambda: source(machine_examples=4), r"at least 0 and below examples \(4\), got 4"),
        (lambda: source(top_p=0.0), r"top_p in \(0, 1\] and at least 1 new token, got 0.5, 0.0 and 512"),
        (lambda: InstructionFilters(shortest=0), "got shortest 0 and longest 150"),
        (lambda: InstructionFilters(other_letters=2.0), r"other_letters is a share in \[0, 1\], got 2.0"),
        (lambda: InstructionFilters(similarity=0.0), r"similarity must be in \(0, 1\] or None, got 0.0"),
        (lambda: SelfInstructOptions.of({"example": 3}), "has no option 'example'. Did you mean 'examples'"),
        (lambda: SelfInstructOptions.of({"filters": {"longer": 3}}), "filters has no option 'longer'"),
        (lambda: SelfInstructOptions.of({"filters": 3}), "filters is 3; give names and values"),
        (lambda: SelfInstructOptions.of({"examples": "3"}), "self-instruct: examples is '3'; it must be of type int"),
        (lambda: SelfInstructOptions.of({"chat": 1}), "self-instruct: chat is 1; it must be of type bool"),
        (
            lambda: SelfInstructOptions.of({"filters": {"banned_words": "war"}}),
            "banned_words is 'war'; it must be of type",
        ),
        (lambda: source().prompts(0, 1, generator=Writer(), seed=0), "rounds count from 1, got round 0"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(make: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        make()


def test_options_come_from_plain_values() -> None:
    made = SelfInstructOptions.of({"examples": 3, "filters": {"banned_words": ["war"], "similarity": None}})
    assert made == SelfInstructOptions(examples=3, filters=InstructionFilters(banned_words=("war",), similarity=None))


def test_a_round_that_was_given_up_goes_on_with_more_patience(tmp_path: Path) -> None:
    """The first calls write nothing of use: what they wrote is kept, and the later ones come to it."""
    answers = ["", "", "", " Describe the harbour of a small town."]
    with pytest.raises(PromptError, match=r"found 0 of 1 new instructions in 3 calls \(unparseable 3\)"):
        source(tmp_path, patience=1).prompts(1, 1, generator=Writer(answers), seed=0)
    writer = Writer(answers)
    batch = source(tmp_path, patience=5).prompts(1, 1, generator=writer, seed=0)
    assert batch.counts["unparseable"] == 5 and len(writer.asked) == 3


def test_a_folder_belongs_to_one_request(tmp_path: Path) -> None:
    source(tmp_path).prompts(1, 4, generator=Writer(), seed=0)
    for make, what in (
        (lambda: source(tmp_path).prompts(1, 4, generator=Writer(), seed=1), "another seed;"),
        (lambda: source(tmp_path).prompts(1, 5, generator=Writer(), seed=0), "another number of prompts;"),
        (lambda: source(tmp_path, calls=4).prompts(1, 4, generator=Writer(), seed=0), "another set of options;"),
        (lambda: source(tmp_path, SEEDS[:8]).prompts(1, 4, generator=Writer(), seed=0), "another set of seed tasks;"),
    ):
        with pytest.raises(PromptError, match=f"instructions-0001.jsonl was begun with {what} use another folder"):
            make()
    path = tmp_path / "instructions-0001.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:20], *lines[2:]]) + "\n")
    with pytest.raises(PromptError, match=r"is damaged \(.*\); delete it to write its round anew"):
        source(tmp_path).prompts(1, 4, generator=Writer(), seed=0)
    path.write_text("[]\n")
    with pytest.raises(PromptError, match="is no file of new instructions; use another folder"):
        source(tmp_path).prompts(1, 4, generator=Writer(), seed=0)
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(PromptError, match="is damaged: it is not UTF-8 text"):
        source(tmp_path).prompts(1, 4, generator=Writer(), seed=0)
