"""From text and messages to token ids: joints, templates, EOS and BOS, worked by hand with a tokenizer of words."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest

from llm_backend.data import DataError
from llm_backend.data.hashing import ids_key
from llm_backend.tokenization import TokenOptions, tokenize_preferences
from llm_backend.toy import CHAT_TEMPLATE
from tests.llm_backend.word_pairs import WORDS, only, pair, says, word_tokenizer


@pytest.fixture
def tokenizer() -> Any:
    return word_tokenizer()


def ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_text_by_hand(tokenizer: Any) -> None:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    one, two, three, four, five = (ids(tokenizer, word)[0] for word in ("one", " two", " three", " four", " five"))
    found = only(tokenizer, replace(pair(), category="law", flipped=True))
    assert found == {
        "row": 0,
        "prompt_ids": [bos, one, two],
        "chosen_ids": [three, four, eos],
        "rejected_ids": [five, eos],
        "prompt_key": ids_key([bos, one, two]),
        "chosen_key": ids_key([three, four, eos]),
        "rejected_key": ids_key([five, eos]),
        "category": "law",
        "flipped": True,
    }


def test_sources_of_wrpo(tokenizer: Any) -> None:
    row = replace(pair(), source_chosen=" six", source_rejected=" seven")
    found = only(tokenizer, row)
    assert tokenizer.decode(found["source_chosen_ids"]) == " six</s>"
    assert tokenizer.decode(found["source_rejected_ids"]) == " seven</s>"
    same = replace(row, source_chosen=row.rejected)
    with pytest.raises(DataError, match="of 1: 1 identical responses"):
        tokenize_preferences([same], tokenizer)
    with pytest.raises(DataError, match="row 0 has chosen, rejected, but row 1 has chosen, rejected, source_chosen"):
        tokenize_preferences([pair(), replace(pair(row=1), source_chosen=" six")], tokenizer)


def test_chat_has_one_bos_one_eos_and_the_generation_prompt(tokenizer: Any) -> None:
    found = only(tokenizer, pair(says("one", "user"), says("two"), says("three")))
    assert tokenizer.decode(found["prompt_ids"]) == "<s><|user|>one</s><|assistant|>"
    assert tokenizer.decode(found["chosen_ids"]) == "two</s>"
    whole = tokenizer.apply_chat_template([*says("one", "user"), *says("two")], tokenize=False)
    assert found["prompt_ids"] + found["chosen_ids"] == ids(tokenizer, whole)


class TestEos:
    def test_is_not_doubled(self, tokenizer: Any) -> None:
        found = only(tokenizer, pair(chosen=" three</s>"))
        assert found["chosen_ids"] == ids(tokenizer, " three</s>")
        counts = tokenize_preferences([pair(chosen=" three</s>", rejected=" four</s>")], tokenizer).counts
        assert counts.eos_added == 0

    def test_never(self, tokenizer: Any) -> None:
        assert only(tokenizer, pair(), eos="never")["rejected_ids"] == ids(tokenizer, " five")

    def test_of_another_name(self, tokenizer: Any) -> None:
        found = only(tokenizer, pair(), eos_token="<|user|>")
        assert found["rejected_ids"][-1] == tokenizer.convert_tokens_to_ids("<|user|>")
        with pytest.raises(DataError, match="eos_token '<end>' is not one token of the tokenizer"):
            only(tokenizer, pair(), eos_token="<end>")

    def test_white_space_that_a_template_writes_behind_it_goes(self, tokenizer: Any) -> None:
        tokenizer.chat_template = CHAT_TEMPLATE.replace("eos_token }}", "eos_token + '\\n' }}")
        row = pair(says("one", "user"), says("two"), says("three"))
        for policy in ("append_if_missing", "template"):
            assert tokenizer.decode(only(tokenizer, row, eos=policy)["chosen_ids"]) == "two</s>"
        assert tokenizer.decode(only(tokenizer, row, eos="never")["chosen_ids"]) == "two</s>\n"

    def test_a_template_without_it(self, tokenizer: Any) -> None:
        tokenizer.chat_template = CHAT_TEMPLATE.replace(" + eos_token", "")
        row = pair(says("one", "user"), says("two"), says("three"))
        assert tokenizer.decode(only(tokenizer, row)["chosen_ids"]) == "two</s>"
        with pytest.raises(DataError, match=r"row 0: the chat template ends response 0 without '</s>'; set eos to"):
            only(tokenizer, row, eos="template")
        with pytest.raises(DataError, match="row 0: there is no template for text, and it ends response 0 without"):
            only(tokenizer, pair(), eos="template")

    def test_a_tokenizer_without_it(self, tokenizer: Any) -> None:
        tokenizer.eos_token = None
        with pytest.raises(DataError, match=r"the tokenizer has no EOS token; set tokenizer\.eos_token, or name one"):
            only(tokenizer, pair())
        assert only(tokenizer, pair(), eos="never")["rejected_ids"] == ids(tokenizer, " five")


class TestBos:
    def test_is_not_doubled(self, tokenizer: Any) -> None:
        plain = only(tokenizer, pair())
        result = tokenize_preferences([pair("<s><s>one two")], tokenizer)
        assert result.dataset[0]["prompt_ids"] == plain["prompt_ids"]
        assert result.counts.bos_removed == 1
        assert only(tokenizer, pair("<s>one two"))["prompt_ids"] == plain["prompt_ids"]

    def test_never(self, tokenizer: Any) -> None:
        assert only(tokenizer, pair(), bos="never")["prompt_ids"] == ids(tokenizer, "one two")

    def test_is_not_put_where_the_tokenizer_puts_none(self, tokenizer: Any) -> None:
        tokenizer.bos_token = None
        assert only(tokenizer, pair())["prompt_ids"] == ids(tokenizer, "one two")


class TestBoundary:
    """' th' + 'ree' is two tokens or more apart, and one as a whole."""

    row = pair("one two th", "ree", " five")

    def test_a_merge_is_an_error_that_shows_the_row(self, tokenizer: Any) -> None:
        with pytest.raises(DataError) as caught:
            tokenize_preferences([pair(), replace(self.row, row=17)], tokenizer)
        message = str(caught.value)
        assert message.startswith("row 17: prompt and response merge into other tokens where they meet: apart ")
        assert "'Ġtwo', 'Ġthree']; end the prompt where a token ends" in message
        assert "set boundary to 'joint' or 'separate'" in message

    def test_separate_joins_the_ids(self, tokenizer: Any) -> None:
        result = tokenize_preferences([self.row], tokenizer, TokenOptions(boundary="separate"))
        assert result.dataset[0]["prompt_ids"][1:] == ids(tokenizer, "one two th")
        assert result.dataset[0]["chosen_ids"][:-1] == ids(tokenizer, "ree")
        assert result.counts.merged == [0]

    def test_joint_takes_the_ids_of_the_whole_text(self, tokenizer: Any) -> None:
        result = tokenize_preferences([self.row], tokenizer, TokenOptions(boundary="joint"))
        found, eos = result.dataset[0], [tokenizer.eos_token_id]
        for side, text in (("chosen", "one two three"), ("rejected", "one two th five")):
            assert found["prompt_ids"][1:] + found[f"{side}_ids"] == ids(tokenizer, text) + eos
        assert found["prompt_ids"][1:] == ids(tokenizer, "one two")  # what both texts begin with
        assert result.counts.merged == [0]


class TestTemplates:
    row = pair(says("one", "user"), says("two"), says("three"))

    def test_there_is_none(self, tokenizer: Any) -> None:
        tokenizer.chat_template = None
        with pytest.raises(DataError, match="row 0 is made of messages, but the tokenizer has no chat template"):
            only(tokenizer, self.row)

    def test_without_jinja(self, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "jinja2", None)
        with pytest.raises(DataError, match=r"a chat template needs jinja2 .*: pip install 'prefgeo\[llm\]'"):
            only(tokenizer, self.row)

    def test_it_refuses_a_role(self, tokenizer: Any) -> None:
        tokenizer.chat_template = "{{ raise_exception('only users here') }}"
        with pytest.raises(DataError, match="row 0: the chat template refuses the messages: only users here"):
            only(tokenizer, self.row)

    def test_it_cannot_be_split(self, tokenizer: Any) -> None:
        """Its generation prompt is not what it writes before an answer."""
        tokenizer.chat_template = CHAT_TEMPLATE.replace("{{ '<|assistant|>' }}{% endif %}", "{{ 'now' }}{% endif %}")
        with pytest.raises(
            DataError, match="row 0: the chat template writes the prompt otherwise when a response"
        ) as caught:
            only(tokenizer, self.row)
        assert "'now' becomes '<|assistant|>two</s>'" in str(caught.value)


def test_rows_come_in_order_whatever_the_chunks(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    words = WORDS.split()
    rows = [pair(f"one {words[i % 7]}", f" {words[i % 10]}", f" {words[(i + 1) % 10]}", row=i) for i in range(23)]
    done: list[int] = []
    whole = tokenize_preferences(rows, tokenizer, progress=done.append).dataset.to_list()
    monkeypatch.setattr("llm_backend.tokenization.CHUNK", 4)
    parts = tokenize_preferences(rows, tokenizer, progress=done.append).dataset
    assert parts.to_list() == whole
    assert parts["row"][:] == list(range(23))
    assert done == [23, 4, 4, 4, 4, 4, 3]


def test_no_rows(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="there are no rows to tokenise"):
        tokenize_preferences([], tokenizer)
