"""Sources by name: files, folders that datasets saved, the hub (a stand-in: no test uses a network), and formats."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from llm_backend.data import DataError, load_preferences
from llm_backend.data.load import detect

datasets = pytest.importorskip("datasets")

PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}
DIALOGUE = {side: f"\n\nHuman: Hi\n\nAssistant: {side}" for side in ("chosen", "rejected")}
QUESTION = {"question_id": 1, "category": "c", "question": "q", "options": ["a", "b"], "answer_index": 0}


def saved(folder: Path, *records: dict[str, Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize(
    ("record", "format", "chosen"),
    [(PAIR, "pairs", "c"), (DIALOGUE, "hh", " chosen"), (QUESTION, "mmlu_pro", " (A) a")],
)
def test_formats_are_known_by_their_columns(tmp_path: Path, record: dict[str, Any], format: str, chosen: str) -> None:
    assert detect(record) == format
    path = saved(tmp_path, record)
    assert load_preferences(path).rows[0].chosen == chosen
    assert load_preferences(path, format=format) == load_preferences(path)


def test_dialogues_with_a_prompt_column_are_pairs() -> None:
    assert detect(DIALOGUE | {"prompt": "p"}) == "pairs"


def test_options_of_the_format(tmp_path: Path) -> None:
    assert load_preferences(saved(tmp_path, QUESTION), answer="text").rows[0].chosen == " a"
    with pytest.raises(DataError, match="this format has no option 'answer'"):
        load_preferences(saved(tmp_path, PAIR), answer="text")
    with pytest.raises(DataError, match=r"unknown format 'hhh'\. Did you mean 'hh'\? Known: auto, pairs, hh, mmlu_pro"):
        load_preferences(saved(tmp_path, PAIR), format="hhh")


def test_a_folder(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list([PAIR, PAIR])
    rows.save_to_disk(str(tmp_path / "one"))
    assert len(load_preferences(tmp_path / "one")) == 2
    datasets.DatasetDict({"test": rows}).save_to_disk(str(tmp_path / "splits"))
    assert len(load_preferences(tmp_path / "splits", split="test")) == 2
    with pytest.raises(DataError, match=r"splits has no split 'train'; it has test"):
        load_preferences(tmp_path / "splits")
    with pytest.raises(DataError, match="one is one dataset without splits; leave split 'train' out"):
        load_preferences(tmp_path / "one", split="train")
    with pytest.raises(DataError, match="a file has no splits"):
        load_preferences(saved(tmp_path, PAIR), split="train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="is no folder that datasets saved whole"):
        load_preferences(tmp_path / "empty")


def test_a_damaged_folder(tmp_path: Path) -> None:
    datasets.Dataset.from_list([PAIR]).save_to_disk(str(tmp_path / "one"))
    for file in (tmp_path / "one").glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(DataError, match="is no folder that datasets saved whole"):
        load_preferences(tmp_path / "one")


def test_a_name_that_is_no_path_is_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(name: str, split: str) -> Any:
        asked.append((name, split))
        return datasets.Dataset.from_list([PAIR])

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("llm_backend.data.load.offline", lambda name, kind: False)  # the hub has it
    found = load_preferences("owner/pairs", split="train[:10]")
    load_preferences("owner/pairs")
    assert (found.source, len(found)) == ("owner/pairs", 1)
    assert asked == [("owner/pairs", "train[:10]"), ("owner/pairs", "train")]


def test_the_hub_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, split: str) -> Any:
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr("llm_backend.data.load.offline", lambda name, kind: False)  # the hub has it
    with pytest.raises(DataError) as caught:
        load_preferences("owner/pairs")
    assert str(caught.value) == (
        "there is no file or folder owner/pairs, and it cannot be loaded from the hub either: "
        "ConnectionError: no network"
    )


@pytest.mark.parametrize("name", ["data.jsonl", "data.csv.gz", "./data", "/no/such", "a/b/c"])
def test_a_path_is_never_asked_of_the_hub(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError):
        load_preferences(name)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"needs datasets .*install it with: pip install 'prefgeo\[llm\]'"):
        load_preferences("owner/pairs")
