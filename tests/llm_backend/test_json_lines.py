"""Files of JSON lines: what is whole is read, what a kill left unfinished is cut off, whatever the place."""

from __future__ import annotations

import json

import pytest

from llm_backend.data.json_lines import append_line, cut_unfinished, whole_lines

RECORDS = [{"a": "é\n"}, [1, 2], None]


def test_every_cut_of_a_file_is_continued_to_the_same_records(tmp_path) -> None:
    path = tmp_path / "deep" / "lines.jsonl"
    assert whole_lines(path) == []
    cut_unfinished(path)
    assert not path.exists()
    for record in RECORDS:
        append_line(path, record)
    content = path.read_bytes()
    assert [json.loads(line) for line in whole_lines(path)] == RECORDS
    for size in range(len(content)):
        path.write_bytes(content[:size])
        lines = whole_lines(path)
        assert path.stat().st_size == size  # looking changes nothing
        cut_unfinished(path)
        for record in RECORDS[len(lines) :]:
            append_line(path, record)
        assert path.read_bytes() == content


def test_a_record_that_is_no_json_leaves_the_file_as_it_was(tmp_path) -> None:
    path = tmp_path / "lines.jsonl"
    append_line(path, 1)
    with pytest.raises(TypeError):
        append_line(path, {"a": {1, 2}})
    assert whole_lines(path) == [b"1"]
