"""Rankers over models of their own: a reward model, and PairRM's architecture."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import (  # noqa: E402
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    LlamaConfig,
    RobertaConfig,
)

from llm_backend.ranking import (  # noqa: E402
    PairModel,
    PairRanker,
    RankingError,
    RewardModelRanker,
    checked_scores,
    save_pair_model,
)
from llm_backend.toy import make_model  # noqa: E402
from tests.llm_backend.cat_and_dog import CANDIDATES, CHAT, PROMPTS, TOKENIZER  # noqa: E402

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def seeded(build, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().double().eval()


def classifier(config_class=LlamaConfig, *, num_labels=1, pad=0, scale=30.0, **more):
    settings = {"vocab_size": len(TOKENIZER), "num_labels": num_labels, "pad_token_id": pad} | SMALL | more
    model = seeded(lambda: AutoModelForSequenceClassification.from_config(config_class(**settings)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale if parameter.ndim > 1 and parameter.shape[0] == 1 else 1.0)
    return model


WORDS = ("the", "cat", "sat", "on", "mat", "a", "dog", "ran", "over", "green", "hill")


def bert_tokenizer(extra=()):
    """A WordPiece-like tokenizer with CLS and SEP around every text, as encoders have."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *WORDS]
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip
    made.add_tokens(list(extra), special_tokens=True)
    return made


MARKS = ("<|source|>", "<|candidate1|>", "<|candidate2|>")


def pair_model(tokenizer, kind="deberta", **more):
    config = {
        "deberta": lambda: DebertaV2Config(
            vocab_size=len(tokenizer), position_biased_input=False, relative_attention=True, type_vocab_size=0,
            max_position_embeddings=64, pos_att_type=["c2p", "p2c"], **SMALL, **more,
        ),
        "bert": lambda: BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **SMALL, **more),
        "roberta": lambda: RobertaConfig(
            vocab_size=len(tokenizer), max_position_embeddings=64, pad_token_id=1, **SMALL, **more
        ),
    }[kind]()  # fmt: skip
    model = seeded(lambda: PairModel(AutoModel.from_config(config), tasks=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10.0 if parameter.ndim > 1 else 1.0)  # so that texts make a difference
    return model


# ------------------------------------------------------------------------------------------------------ reward models
@pytest.mark.parametrize("pad", [0, None, 2])  # its own pad token, none, and EOS as pad token
@pytest.mark.parametrize("prompts", [PROMPTS, CHAT], ids=["text", "chat"])
def test_a_reward_model_scores_each_response_as_if_alone(pad, prompts) -> None:
    model = classifier(pad=pad)
    found = RewardModelRanker(model, TOKENIZER, batch_size=6).scores(prompts, CANDIDATES)
    expected = np.zeros((2, 3))
    for row, prompt in enumerate(prompts):
        for place, text in enumerate(CANDIDATES[row]):
            if prompts is CHAT:
                talk = [*prompt, {"role": "assistant", "content": text}]
                ids = TOKENIZER.apply_chat_template(talk, tokenize=True, return_dict=True)["input_ids"]
            else:
                ids = TOKENIZER(prompt + text)["input_ids"]
            with torch.no_grad():
                expected[row, place] = model(input_ids=torch.tensor([ids])).logits.item()
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.ptp(found) > 1e-3
    assert model.config.pad_token_id == pad
    ones = RewardModelRanker(model.train(), TOKENIZER, batch_size=1).scores(prompts, CANDIDATES)
    np.testing.assert_allclose(found, ones, rtol=1e-6)
    assert model.training


def test_a_reward_model_reads_tokens_that_merge_across_the_joint() -> None:
    model = classifier()
    whole = TOKENIZER("the cat")["input_ids"]
    assert whole != TOKENIZER("the c")["input_ids"] + TOKENIZER("at", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([whole])).logits.item()
    assert RewardModelRanker(model, TOKENIZER).scores(["the c"], [["at"]])[0, 0] == pytest.approx(expected, rel=1e-6)


def test_an_encoder_reads_pairs_with_segments() -> None:
    tokenizer = bert_tokenizer()
    model = classifier(BertConfig, vocab_size=len(tokenizer), scale=100.0)
    found = RewardModelRanker(model, tokenizer, batch_size=4).scores(PROMPTS, CANDIDATES)
    for row, prompt in enumerate(PROMPTS):
        for place, text in enumerate(CANDIDATES[row]):
            with torch.no_grad():
                alone = model(**tokenizer(prompt, text, return_tensors="pt")).logits.item()
            assert found[row, place] == pytest.approx(alone, rel=1e-6)


def test_scores_are_float32_for_a_bfloat16_model_and_folders_are_checked(tmp_path) -> None:
    model = classifier().to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    ranker = RewardModelRanker.load(tmp_path, dtype="bfloat16", batch_size=2, max_length=64)
    found = checked_scores(ranker, PROMPTS, CANDIDATES)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, RewardModelRanker(model, TOKENIZER, batch_size=2).scores(PROMPTS, CANDIDATES))
    make_model(len(TOKENIZER)).save_pretrained(tmp_path / "lm")
    with pytest.raises(RankingError, match=r"(score.weight is missing|has 2 outputs)"):
        RewardModelRanker.load(tmp_path / "lm")
    with pytest.raises(RankingError, match="no sequence classifier can be loaded from"):
        RewardModelRanker.load(tmp_path / "nothing")
    with pytest.raises(RankingError, match="dtype must be one of float32"):
        RewardModelRanker.load(tmp_path, dtype="int8")


def test_what_a_reward_model_is_refused_for() -> None:
    with pytest.raises(RankingError, match="reward model has 3 outputs; a reward model has one"):
        RewardModelRanker(classifier(num_labels=3), TOKENIZER)
    with pytest.raises(RankingError, match="inputs must be auto, joined or pair, got 'both'"):
        RewardModelRanker(classifier(), TOKENIZER, inputs="both")
    with pytest.raises(RankingError, match="batch_size must be at least 1, got 0"):
        RewardModelRanker(classifier(), TOKENIZER, batch_size=0)
    ranker = RewardModelRanker(classifier(), TOKENIZER, max_length=7)
    with pytest.raises(RankingError, match=r"prompt and candidate 1 of row 0 have \d+ tokens; the model reads 1 to 7"):
        ranker.scores(["the cat"], [[" sat", " sat on the mat and on the hill"]])


# --------------------------------------------------------------------------------------------------------- pair ranker
def published_margin(model, tokenizer, prompt, first, second):
    """The published way, by hand: three encoded texts joined, states at the marks, head of both, mean over tasks."""
    parts = [tokenizer(mark + text)["input_ids"] for mark, text in zip(MARKS, (prompt, first, second), strict=True)]
    ids = torch.tensor([[token for part in parts for token in part]])
    marks = [(ids == tokenizer.convert_tokens_to_ids(mark)).nonzero()[0, 1] for mark in MARKS]
    with torch.no_grad():
        states = model.encoder(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
        left, right = (model.head(torch.cat([states[marks[0]], states[marks[k]]])) for k in (1, 2))
    return (left - right).mean().item()


@pytest.mark.parametrize("kind", ["deberta", "bert"])
def test_pair_scores_are_the_mean_margins_of_both_orders(kind) -> None:
    tokenizer = bert_tokenizer(MARKS)
    model = pair_model(tokenizer, kind)
    ranker = PairRanker(model, tokenizer, batch_size=5)
    found = checked_scores(ranker, PROMPTS, CANDIDATES)
    expected = np.zeros((2, 3))
    for row, prompt in enumerate(PROMPTS):
        for i, first in enumerate(CANDIDATES[row]):
            for j, second in enumerate(CANDIDATES[row]):
                margin = 0.0 if i == j else published_margin(model, tokenizer, prompt, first, second)
                expected[row, i] += margin / 4
                expected[row, j] -= margin / 4
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.sum(axis=1), 0.0, atol=1e-12)
    assert np.ptp(found) > 1e-4
    one = PairRanker(model, tokenizer, batch_size=1).scores(PROMPTS, CANDIDATES)
    np.testing.assert_allclose(found, one, rtol=1e-9, atol=1e-12)
    swapped = ranker.scores(PROMPTS, [each[::-1] for each in CANDIDATES])
    np.testing.assert_allclose(swapped, found[:, ::-1], atol=1e-12)
    assert ranker.cut == 0


def test_bubble_finds_best_and_worst_with_fewer_readings(monkeypatch) -> None:
    """Margins of a total order: one pass up and one down find its ends. 4 N - 6 readings against N (N - 1)."""
    tokenizer = bert_tokenizer(MARKS)
    ranker = PairRanker(pair_model(tokenizer), tokenizer, aggregation="bubble")
    worth = {"a": 3.0, "dog": 1.0, "hill": 4.0, "mat": 0.5, "cat": 2.0}
    read = []

    def margins(prompts, candidates, pairs):
        read.extend(pairs)
        return np.array([worth[candidates[row][i]] - worth[candidates[row][j]] for row, i, j in pairs])

    monkeypatch.setattr(ranker, "margins", margins)
    found = ranker.scores(["p", "q"], [["a", "dog", "hill", "mat", "cat"], ["mat", "a", "cat", "hill", "dog"]])
    np.testing.assert_array_equal(found, [[0, 0, 1, -1, 0], [-1, 0, 0, 1, 0]])
    assert len(read) == 2 * 7
    assert ranker.scores(["p"], [["a"]]).tolist() == [[0.0]]


def test_folders_of_ours_and_of_the_published_layout(tmp_path) -> None:
    tokenizer = bert_tokenizer(MARKS)
    model = pair_model(tokenizer).float()
    ours, published = tmp_path / "ours", tmp_path / "published"
    for folder in (ours, published):
        save_pair_model(model, folder)
        tokenizer.save_pretrained(folder)
    tensors = load_file(published / "model.safetensors")
    renamed = {
        name.replace("encoder.", "pretrained_model.", 1)
        if name.startswith("encoder.")
        else name.replace("head.", "head_layer.", 1): tensor
        for name, tensor in tensors.items()
    }
    renamed["pretrained_model.embeddings.position_ids"] = torch.arange(4)
    save_file(renamed, published / "model.safetensors")
    expected = PairRanker(model, tokenizer).scores(PROMPTS, CANDIDATES)
    for folder in (ours, published):
        ranker = PairRanker.load(folder, batch_size=3)
        np.testing.assert_allclose(ranker.scores(PROMPTS, CANDIDATES), expected, atol=1e-6)
    for change, message in (
        (lambda t: t.pop("head.1.bias"), "head.1.bias is missing"),
        (lambda t: t.pop("head.4.weight"), "has no head.4.weight"),
        (lambda t: t.update(other=torch.zeros(1)), "other is unknown"),
        (lambda t: t.update({"head.1.bias": torch.zeros(3)}), "does not fit config.json"),
    ):
        changed = dict(tensors)
        change(changed)
        save_file(changed, ours / "model.safetensors")
        with pytest.raises(RankingError, match=message):
            PairRanker.load(ours)
    (ours / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(RankingError, match="is no folder of a pair ranker"):
        PairRanker.load(ours)
    with pytest.raises(RankingError, match=r"holds no config.json"):
        PairRanker.load(tmp_path)


def test_long_texts_are_cut_and_counted_and_marks_inside_them_mean_nothing() -> None:
    tokenizer = bert_tokenizer(MARKS)
    ranker = PairRanker(pair_model(tokenizer), tokenizer, source_length=8, candidate_length=6)
    ids, marks = ranker._line("the cat " * 9, "a dog " * 9, "hill")
    assert [ids[place] for place in marks] == [tokenizer.convert_tokens_to_ids(mark) for mark in MARKS]
    assert marks == [1, 9, 15]
    assert len(ids) == 8 + 6 + 4
    assert ranker.cut == 2
    sly, _ = ranker._line("the cat", "a <|candidate2|> [SEP] dog", "hill")
    assert sly == ranker._line("the cat", "a dog", "hill")[0]


@pytest.mark.parametrize(("kind", "most"), [("bert", 64), ("roberta", 62)])  # RoBERTa's positions begin at pad id + 1
def test_a_pair_ranker_uses_the_positions_that_its_encoder_has(kind, most) -> None:
    tokenizer = bert_tokenizer(MARKS)
    ranker = PairRanker(pair_model(tokenizer, kind), tokenizer)
    long = ["the cat " * 99, "a dog " * 99, "hill " * 99]
    ids, _ = ranker._line(*long)
    assert most - 3 < len(ids) <= most
    assert np.isfinite(ranker.scores(long[:1], [long[1:]])).all()
    with pytest.raises(RankingError, match=f"max_length is {most + 1}, but the encoder reads {most} tokens"):
        PairRanker(ranker.model, tokenizer, max_length=most + 1)


def test_a_pair_ranker_tokenises_each_text_once_in_each_place() -> None:
    tokenizer = bert_tokenizer(MARKS)
    ranker = PairRanker(pair_model(tokenizer), tokenizer)
    ranker.scores(PROMPTS, CANDIDATES)
    assert ranker._part.cache_info().misses == 2 * (1 + 2 * 3)  # of 2 * 6 lines of 3 texts


def test_a_reward_model_reads_no_further_than_its_positions() -> None:
    tokenizer = bert_tokenizer()
    for config, most in ((BertConfig, 16), (RobertaConfig, 14)):
        given = {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "pad": 1}
        ranker = RewardModelRanker(classifier(config, **given), tokenizer, inputs="pair")
        fitting = "the " * (most - 5)  # CLS, two words, SEP, ..., SEP
        assert np.isfinite(ranker.scores(["a dog"], [[fitting]])).all()
        with pytest.raises(RankingError, match=f"have {most + 1} tokens; the model reads 1 to {most}"):
            ranker.scores(["a dog"], [[fitting + " cat"]])


def test_what_a_pair_ranker_is_refused_for() -> None:
    tokenizer = bert_tokenizer(MARKS)
    model = pair_model(tokenizer, "bert")
    for setting, message in (
        ({"aggregation": "median"}, "aggregation must be mean or bubble, got 'median'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"max_length": 100}, "max_length is 100, but the encoder reads 64 tokens"),
        ({"max_length": 9}, "9 tokens leave no room"),
    ):
        with pytest.raises(RankingError, match=message):
            PairRanker(model, tokenizer, **setting)
    with pytest.raises(RankingError, match=r"the tokenizer has no token <\|source\|>"):
        PairRanker(model, bert_tokenizer())
