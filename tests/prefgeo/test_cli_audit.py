"""`prefgeo audit`: tables, JSON, a tokenizer of one's own, and bad input as one sentence with exit status 2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefgeo.cli import main

pytest.importorskip("transformers")
PAIR = {"prompt": "Question: one or two?", "chosen": " one", "rejected": " two, or three"}


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    records = [PAIR, PAIR, {**PAIR, "rejected": ""}, {**PAIR, "prompt": "Why?"}]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def said(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    status = main(["audit", *(str(each) for each in arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def test_tables_and_sentences(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = said(capsys, pairs, "--max-length", "64", "--vocab-size", "300")
    assert (status, err) == (0, "")
    assert "4 rows, of which training would keep 3" in out
    assert "max_length 64, truncation drop, EOS append_if_missing" in out
    assert "dropped: empty response" in out
    assert "chosen - rejected" in out
    assert "- rows that repeat an earlier one (same prompt, chosen and rejected): 1." in out
    assert max(len(line) for line in out.splitlines() if line[0] in "┃│") <= 140


def test_nothing_to_complain_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps(PAIR))
    assert "nothing to complain about." in said(capsys, path)[1]


def test_json(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = said(capsys, pairs, "--json", "--max-prompt-length", "40", "--truncation", "cut_prompt_left")
    document: dict[str, Any] = json.loads(out)
    assert (status, err) == (0, "")
    assert document["dropped"] == {"empty response": 1}
    assert document["counts"]["dropped"] == {"empty response": [2]}
    assert document["graph"]["prompts"] == 2
    assert document["options"]["max_prompt_length"] == 40
    assert document["eos"]["chosen"]["ends_with"] == 3
    assert document["bias"]["difference"]["value"] < 0
    assert document["rows_read"] == 4


def test_a_tokenizer_of_ones_own(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from llm_backend.toy import make_tokenizer

    make_tokenizer(["Question: one or two?"], 270).save_pretrained(str(tmp_path / "mine"))
    status, out, _ = said(capsys, pairs, "--tokenizer", tmp_path / "mine", "--json")
    assert status == 0
    assert json.loads(out)["tokenizer"]["vocabulary"] == 270


def test_whole_conversations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talks = {
        side: [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": side}]
        for side in ("chosen", "rejected")
    }
    path = tmp_path / "talks.jsonl"
    path.write_text(json.dumps(talks))
    assert said(capsys, path, "--prompt", "extract")[0] == 0
    status, _, err = said(capsys, path)
    assert status == 2
    assert "Whole conversations are read with prompt='extract'." in err


REFUSED = {
    "no file": (["nothing.jsonl"], "there is no file nothing.jsonl"),
    "truncation": (["PAIRS", "--truncation", "left"], "truncation must be one of drop, cut_prompt_left, cut_response"),
    "limits": (["PAIRS", "--max-length", "8", "--max-prompt-length", "9"], "leaves no token for a response within"),
    "no row": (["PAIRS", "--max-length", "2"], "no row is left to train on; of 4: 3 prompt too long, 1 empty response"),
    "format": (["PAIRS", "--format", "hh"], "row 0: chosen has no '\\n\\nAssistant:', so it is no HH dialogue"),
    "unknown format": (["PAIRS", "--format", "pair"], "unknown format 'pair'. Did you mean 'pairs'?"),
    "vocabulary": (["PAIRS", "--vocab-size", "10"], "vocab_size must be at least 262"),
    "tokenizer": (["PAIRS", "--tokenizer", "EMPTY"], "empty holds no tokenizer; name one that does"),
    "eos": (["PAIRS", "--eos", "template"], "row 0: there is no template for text, and it ends response 0 without"),
    "prompt for hh": (["HH", "--prompt", "extract"], "this format has no option 'prompt'"),
    "vocabulary of another": (
        ["PAIRS", "--tokenizer", "EMPTY", "--vocab-size", "300"],
        "--vocab-size is for the embedded",
    ),
    "split of a file": (["PAIRS", "--split", "test"], "pairs.jsonl is a file, and a file has no splits; leave split"),
    "option": (["PAIRS", "--max-len", "8"], "--max-len"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input(
    case: str, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    dialogue = "\n\nHuman: Hi\n\nAssistant:"
    (tmp_path / "hh.jsonl").write_text(json.dumps({"chosen": f"{dialogue} a", "rejected": f"{dialogue} b"}))
    arguments, sentence = REFUSED[case]
    names = {"PAIRS": pairs, "EMPTY": tmp_path / "empty", "HH": tmp_path / "hh.jsonl"}
    status, out, err = said(capsys, *(names.get(each, each) for each in arguments))
    assert (status, out) == (2, "")
    assert err.startswith("prefgeo: ")
    assert err.count("\n") == 1
    assert sentence in err


@pytest.mark.data
def test_real_questions(data_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The first 150 questions, each right option against each wrong one."""
    import gzip

    with gzip.open(data_folder / "mmlu_pro_questions.jsonl.gz", "rt", encoding="utf-8") as file:
        records = [json.loads(line) for _, line in zip(range(150), file, strict=False)]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    status, out, _ = said(capsys, path, "--json", "--vocab-size", "2000")
    document = json.loads(out)
    assert status == 0
    pairs = sum(len(record["options"]) - 1 for record in records)
    assert (document["rows_read"], document["counts"]["kept"], document["dropped"]) == (pairs, pairs, {})
    assert document["graph"]["connected"] == document["graph"]["prompts"] == 150
    assert document["graph"]["responses"] == pairs + 150
    assert document["graph"]["finite"] == 0
    assert document["counts"]["merged"] == []
