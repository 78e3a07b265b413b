"""The examples of the page on generating and ranking run, one after the other, and its table names every ranker."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import llm_backend.ranking

PAGE = Path(__file__).resolve().parents[2] / "docs" / "generation_and_ranking.md"


def test_the_examples_run(capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(code) == 3
    names: dict = {}
    for block in code:
        exec(compile(block, str(PAGE), "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("short [")
    assert printed[1].startswith("implicit reward [")
    assert printed[2] == "[1. 1.] [-1. -1.]"
    assert not list(tmp_path.iterdir())  # the judge of the page wrote and asked nothing


def test_the_table_names_every_ranker() -> None:
    rankers = {name for name in llm_backend.ranking.__all__ if name.endswith("Ranker")} - {"Ranker", "CountingRanker"}
    table = set(re.findall(r"^\| `(\w+)\(", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert rankers == table
