"""docs/aipo_data.md: its Python runs, and its tables have the filters and options of the code, in order."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from llm_backend import pairing
from llm_backend.pairing import PairRule
from llm_backend.prompts import SelfInstructOptions, instruction_filters

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "aipo_data.md").read_text(encoding="utf-8")


def test_the_example_runs_and_its_counts_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    exec(compile(example, "docs/aipo_data.md", "exec"), {})
    printed = capsys.readouterr().out
    assert sum(int(number) for number in re.findall(r"\d+", printed)) == 8


@pytest.mark.parametrize(
    ("title", "names"),
    [("| filter | takes |", instruction_filters.FILTERS), ("| filter | takes a pair when | option |", pairing.FILTERS)],
)
def test_the_tables_have_every_filter_in_order(title: str, names: tuple[str, ...]) -> None:
    rows = PAGE.partition(title)[2].partition("\n\n")[0].splitlines()[2:]
    assert [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])] == list(names)


def test_defaults_are_those_of_the_code() -> None:
    for kind, left_out in ((SelfInstructOptions, {"filters"}), (PairRule, {"select", "stage", "seed"})):
        for field in fields(kind):
            if field.name in left_out:
                continue
            told = re.search(rf"`{field.name}`\s\(([\w.]+)", PAGE)
            assert told is not None, field.name
            default = f"{field.default:g}" if isinstance(field.default, float) else str(field.default).lower()
            assert told[1] == default, field.name
