"""Which rows are cut, left out or refused, whole response sets, and whether a tokenizer fits a model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llm_backend.data import DataError, ResponseSet
from llm_backend.data.hashing import ids_key
from llm_backend.tokenization import TokenOptions, tokenize_preferences, tokenize_sets
from llm_backend.tokenizers import check_special_tokens, check_vocabulary, load_tokenizer
from tests.llm_backend.word_pairs import only, pair, says, word_tokenizer


@pytest.fixture
def tokenizer() -> Any:
    return word_tokenizer()


class TestTruncation:
    """With BOS and EOS: a prompt of 5 tokens, responses of 4 and 2."""

    row = pair("one two three four", " five six seven", " eight")

    def sizes(self, tokenizer: Any, **options: Any) -> tuple[str, str, str]:
        found = only(tokenizer, self.row, **options)
        return tuple(tokenizer.decode(found[f"{name}_ids"]) for name in ("prompt", "chosen", "rejected"))  # type: ignore[return-value]

    def test_within_the_limits_nothing_happens(self, tokenizer: Any) -> None:
        whole = self.sizes(tokenizer)
        for truncation in ("drop", "cut_prompt_left", "cut_response"):
            assert self.sizes(tokenizer, max_length=9, max_prompt_length=5, truncation=truncation) == whole

    def test_drop(self, tokenizer: Any) -> None:
        rows = [self.row, pair(row=1), replace(self.row, row=2)]
        counts = tokenize_preferences(rows, tokenizer, TokenOptions(max_length=8)).counts
        assert (counts.kept, counts.dropped) == (1, {"too long together": [0, 2]})
        counts = tokenize_preferences(rows, tokenizer, TokenOptions(max_prompt_length=4)).counts
        assert counts.dropped == {"prompt too long": [0, 2]}

    def test_cut_prompt_left_keeps_bos_and_the_responses(self, tokenizer: Any) -> None:
        cut = self.sizes(tokenizer, max_length=7, truncation="cut_prompt_left")
        assert cut == ("<s> three four", " five six seven</s>", " eight</s>")
        assert self.sizes(tokenizer, max_prompt_length=2, truncation="cut_prompt_left")[0] == "<s> four"
        counts = tokenize_preferences(
            [self.row, pair(row=1)], tokenizer, TokenOptions(max_length=5, truncation="cut_prompt_left")
        ).counts
        assert counts.dropped == {"response too long": [0]}
        assert (counts.prompts_cut, counts.tokens_cut) == (1, 1)  # 3 + 3 tokens of row 1

    def test_cut_response_fakes_no_eos(self, tokenizer: Any) -> None:
        cut = self.sizes(tokenizer, max_length=7, truncation="cut_response")
        assert cut == ("<s>one two three four", " five six", " eight</s>")
        options = TokenOptions(max_length=6, truncation="cut_response")
        counts = tokenize_preferences([self.row], tokenizer, options).counts
        assert (dict(counts.responses_cut), counts.tokens_cut) == ({"chosen": 1, "rejected": 1}, 4)
        with pytest.raises(DataError, match="no row is left to train on; of 1: 1 prompt too long"):
            self.sizes(tokenizer, max_length=5, truncation="cut_response")

    def test_pairs_that_become_identical(self, tokenizer: Any) -> None:
        rows = [pair(chosen=" three four", rejected=" three five"), pair(row=1)]
        counts = tokenize_preferences(rows, tokenizer, TokenOptions(max_length=4, truncation="cut_response")).counts
        assert counts.dropped == {"identical after truncation": [0]}

    @pytest.mark.parametrize(
        ("options", "sentence"),
        [
            ({"truncation": "left"}, "truncation must be one of drop, cut_prompt_left, cut_response, got 'left'"),
            ({"max_length": 1}, "max_length must be at least 2 tokens, got 1"),
            ({"max_prompt_length": 0}, "max_prompt_length must be at least 1 tokens, got 0"),
            ({"max_length": 8, "max_prompt_length": 8}, "max_prompt_length 8 leaves no token for a response"),
            ({"eos": "always"}, "eos must be one of append_if_missing, template, never, got 'always'"),
            ({"boundary": "merge"}, "boundary must be one of refuse, joint, separate, got 'merge'"),
            ({"keep_empty": True, "eos": "never"}, "keep_empty needs an EOS"),
        ],
    )
    def test_options_that_contradict(self, options: dict[str, Any], sentence: str) -> None:
        with pytest.raises(DataError) as caught:
            TokenOptions(**options)
        assert sentence in str(caught.value)


BAD_ROWS = {
    "empty response": (pair(rejected=""), {}, "a response is empty; remove the row, or keep it with keep_empty"),
    "blank": (pair(rejected=" \n"), {}, "(empty response)"),
    "empty chat": (pair(says("one", "user"), says("two"), says("")), {}, "(empty response)"),
    "identical": (pair(rejected=" three four"), {}, "(identical responses): two of its responses are the same, so"),
    "identical after truncation": (
        pair(chosen=" three four", rejected=" three five"), {"max_length": 4, "truncation": "cut_response"},
        "two of its responses are the same once they are cut; raise max_length or remove the row",
    ),
    "scores": (
        replace(pair(), score_chosen=1.0, score_rejected=1.0), {},
        "(equal scores): its two scores are equal, so nothing is preferred",
    ),
    "prompt": (
        pair("one two three"), {"max_prompt_length": 3},
        "row 3 cannot be trained on (prompt too long): the prompt has 4 tokens, more than max_prompt_length 3 allows; "
        "raise it, or set truncation to 'cut_prompt_left'",
    ),
    "prompt and no room": (
        pair("one two three"), {"max_length": 4},
        "the prompt has 4 tokens, more than max_length 4 allows with a token left for the response",
    ),
    "together": (
        pair(), {"max_length": 5},
        "prompt and longest response have 3 + 3 tokens, more than max_length 5; raise it, or set truncation to",
    ),
    "response": (
        pair(), {"max_length": 4, "truncation": "cut_prompt_left"},
        "the longest response has 3 tokens, which leaves no prompt within the limits (max_length 4",
    ),
    "no context": (pair("", "three", "five"), {"bos": "never"}, "the prompt has no tokens and the tokenizer no BOS"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_an_error_or_counted(case: str, tokenizer: Any) -> None:
    row, options, sentence = BAD_ROWS[case]
    with pytest.raises(DataError) as caught:
        tokenize_preferences([replace(row, row=3)], tokenizer, TokenOptions(bad_rows="error", **options))  # type: ignore[arg-type]
    assert str(caught.value).startswith("row 3 cannot be trained on (")
    assert sentence in str(caught.value)
    with pytest.raises(DataError, match="no row is left to train on; of 1: 1 "):
        tokenize_preferences([row], tokenizer, TokenOptions(**options))  # type: ignore[arg-type]


def test_rows_that_can_be_kept(tokenizer: Any) -> None:
    assert only(tokenizer, pair(rejected=""), keep_empty=True)["rejected_ids"] == [tokenizer.eos_token_id]
    assert only(tokenizer, replace(pair(), score_chosen=1.0, score_rejected=1.0), drop_ties=False)


def test_response_sets(tokenizer: Any) -> None:
    good = ResponseSet(7, "one two", (" three", " four five", " six"), 1, "law")
    same = ResponseSet(8, "one two", (" three", " four", " three"), 1)
    result = tokenize_sets([good, same], tokenizer)
    (found,) = result.dataset.to_list()
    assert result.counts.dropped == {"identical responses": [8]}
    assert (found["row"], found["best"], found["category"]) == (7, 1, "law")
    assert [tokenizer.decode(each) for each in found["response_ids"]] == [" three</s>", " four five</s>", " six</s>"]
    assert found["response_keys"] == [ids_key(each) for each in found["response_ids"]]
    assert found["prompt_ids"] == only(tokenizer, pair())["prompt_ids"]


class TestTokenizerAndModel:
    def test_padding(self, tokenizer: Any) -> None:
        check_special_tokens(tokenizer)
        tokenizer.pad_token = None
        with pytest.raises(DataError, match=r"no pad token; set tokenizer\.pad_token = tokenizer\.eos"):
            check_special_tokens(tokenizer)
        tokenizer.eos_token = None
        with pytest.raises(DataError, match="the tokenizer has no EOS token"):
            check_special_tokens(tokenizer)

    def test_vocabulary(self, tokenizer: Any) -> None:
        size = len(tokenizer)
        check_vocabulary(tokenizer, size)
        check_vocabulary(tokenizer, size + 1024)
        with pytest.raises(
            DataError, match=f"the tokenizer has ids up to {size - 1}, but the model embeds only {size - 1}"
        ):
            check_vocabulary(tokenizer, size - 1)
        with pytest.raises(
            DataError, match=f"the model embeds 32000 tokens, but the tokenizer has only {size}: it is not"
        ):
            check_vocabulary(tokenizer, 32_000)

    def test_a_folder(self, tokenizer: Any, tmp_path: Any) -> None:
        tokenizer.save_pretrained(tmp_path)
        loaded: Any = load_tokenizer(tmp_path)
        rows = [pair(), pair(chosen=" six seven", row=1)]
        assert (
            tokenize_preferences(rows, loaded).dataset.to_list()
            == tokenize_preferences(rows, tokenizer).dataset.to_list()
        )
        chat = pair(says("one", "user"), says("two"), says("three"))
        assert only(loaded, chat) == only(tokenizer, chat)
        (tmp_path / "tokenizer.json").write_text("{}")
        with pytest.raises(DataError, match=r"there is no tokenizer that can be read in the folder"):
            load_tokenizer(tmp_path)
