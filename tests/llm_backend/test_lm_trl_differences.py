"""What docs/compared_with_trl.md says that TRL does otherwise, asserted on the installed TRL and on ours."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llm_backend.data import DataError, PreferenceRow
from llm_backend.metrics import pair_metrics
from llm_backend.models import load_model, new_model, tiny_config
from llm_backend.reference import Reference
from llm_backend.response_trainer import training_arguments
from llm_backend.tokenization import TokenOptions, tokenize_preferences
from llm_backend.trainer import PreferenceTrainer
from objectives import PairLogProbs, make_objective

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    trl = pytest.importorskip("trl")
    from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

WORDS = ["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(12)), "w1w2"]
CHAT = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*WORDS, "user", "assistant"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="right"
    )
    found.chat_template = CHAT
    return found


def by_trl(rows: list[dict[str, Any]], tokenizer: Any, max_length: int | None = None) -> list[dict[str, Any]]:
    """The rows as TRL's trainer prepares them."""
    from datasets import Dataset

    trainer = SimpleNamespace(_tokenizer=tokenizer)
    options = SimpleNamespace(dataset_num_proc=None, max_length=max_length, truncation_mode="keep_start")
    found = DPOTrainer._prepare_dataset(trainer, Dataset.from_list(rows), tokenizer, options, "train")
    return list(found)


def by_us(rows: list[dict[str, Any]], tokenizer: Any, **options: Any) -> tuple[list[dict[str, Any]], Any]:
    made = [PreferenceRow(i, row["prompt"], row["chosen"], row["rejected"]) for i, row in enumerate(rows)]
    found = tokenize_preferences(made, tokenizer, TokenOptions(**options))
    return found.dataset.to_list(), found.counts


def words(found: dict[str, Any], tokenizer: Any, side: str) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(found[f"{side}_ids"]))


def test_the_page_names_tests_that_exist_and_the_version_installed() -> None:
    tests = Path(__file__).resolve().parents[1]
    page = (tests.parent / "docs" / "compared_with_trl.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:\w+/)?test_\w+\.py)`", page))
    assert len(named) >= 6
    assert not [name for name in named if not (tests / name).is_file() and not (tests / "llm_backend" / name).is_file()]
    pinned = re.search(r"^trl==(.*)$", (tests.parent / "constraints.txt").read_text(encoding="utf-8"), flags=re.M)
    assert pinned is not None and f"TRL is {pinned[1]}," in page


def test_plain_text_is_tokenised_alike(tokenizer: Any) -> None:
    rows = [{"prompt": "w1 w2 ", "chosen": "w3 w4 <eos>", "rejected": "w5 <eos>"}]
    theirs, (ours, _) = by_trl(rows, tokenizer), by_us(rows, tokenizer)
    for side in ("prompt", "chosen", "rejected"):
        assert theirs[0][f"{side}_ids"] == ours[0][f"{side}_ids"]


def test_eos_behind_a_chat_turn(tokenizer: Any) -> None:
    """TRL relies on the template, which here writes none; ours appends it, or says so (eos: template)."""
    rows = [
        {
            "prompt": [{"role": "user", "content": "w1"}],
            "chosen": [{"role": "assistant", "content": "w2"}],
            "rejected": [{"role": "assistant", "content": "w3"}],
        }
    ]
    assert words(by_trl(rows, tokenizer)[0], tokenizer, "chosen") == "w2"
    assert words(by_us(rows, tokenizer)[0][0], tokenizer, "chosen") == "w2 <eos>"
    with pytest.raises(DataError, match="<eos>"):
        by_us(rows, tokenizer, eos="template")


def test_tokens_that_merge_across_the_joint(tokenizer: Any) -> None:
    """TRL trains on a shorter prompt, and warns once; ours refuses, and shows the row."""
    rows = [{"prompt": "w3 w1", "chosen": "w2 w4 <eos>", "rejected": "w2 w5 <eos>"}]
    found = by_trl(rows, tokenizer)[0]
    assert words(found, tokenizer, "prompt") == "w3" and words(found, tokenizer, "chosen") == "w1w2 w4 <eos>"
    with pytest.raises(DataError, match="row 0"):
        by_us(rows, tokenizer)
    same, _ = by_us(rows, tokenizer, boundary="joint")  # on demand, as TRL does
    assert words(same[0], tokenizer, "prompt") == "w3" and words(same[0], tokenizer, "chosen") == "w1w2 w4 <eos>"


def test_rows_beyond_the_limit(tokenizer: Any) -> None:
    """TRL cuts in the collator, so that a long response is trained on without its end; ours drops the row, or cuts the
    prompt, or (if told to) the response, and counts it."""
    rows = [{"prompt": "w1 w2 w3 ", "chosen": "w4 w5 w6 <eos>", "rejected": "w7 <eos>"}]
    prepared = by_trl(rows, tokenizer, max_length=6)
    batch = DataCollatorForPreference(pad_token_id=0, max_length=6)(prepared)
    scored = batch["input_ids"][0][batch["completion_mask"][0].bool()]
    assert " ".join(tokenizer.convert_ids_to_tokens(scored.tolist())) == "w4 w5 w6"
    with pytest.raises(DataError, match="too long together"):
        by_us(rows, tokenizer, max_length=6)
    kept, counts = by_us(rows, tokenizer, max_length=6, truncation="cut_prompt_left")
    assert words(kept[0], tokenizer, "prompt") == "w2 w3" and words(kept[0], tokenizer, "chosen") == "w4 w5 w6 <eos>"
    assert counts.prompts_cut == 1


def test_pairs_that_teach_nothing(tokenizer: Any) -> None:
    """TRL keeps identical responses, also those that its collator makes so; ours leaves them out, and counts them."""
    rows = [
        {"prompt": "w1 ", "chosen": "w2 <eos>", "rejected": "w2 <eos>"},
        {"prompt": "w1 w2 w3 ", "chosen": "w4 w5 w6 w7 <eos>", "rejected": "w4 w5 w6 w8 <eos>"},
        {"prompt": "w1 ", "chosen": "w2 <eos>", "rejected": "w3 <eos>"},
    ]
    prepared = by_trl(rows, tokenizer, max_length=6)
    assert len(prepared) == 3
    batch = DataCollatorForPreference(pad_token_id=0, max_length=6)(prepared)
    assert torch.equal(batch["input_ids"][0], batch["input_ids"][3])
    assert torch.equal(batch["input_ids"][1], batch["input_ids"][4])
    ours, counts = by_us(rows, tokenizer, max_length=6, truncation="cut_response")
    assert [row["row"] for row in ours] == [2] and sum(map(len, counts.dropped.values())) == 2


SAME = {
    "learning_rate": 1e-3, "num_train_epochs": 1, "logging_steps": 1, "save_strategy": "no", "use_cpu": True,
    "disable_tqdm": True, "seed": 1, "dataloader_pin_memory": False, "max_grad_norm": 1e9,
}  # fmt: skip
PAIRS = [
    {"prompt": "w1 ", "chosen": "w2 w3 w4 w5 <eos>", "rejected": "w6 <eos>"},
    {"prompt": "w3 w4 ", "chosen": "w7 <eos>", "rejected": "w8 w9 w10 <eos>"},
    {"prompt": "w5 ", "chosen": "w9 w1 <eos>", "rejected": "w2 w2 w2 <eos>"},
]


def start(seed: int = 0) -> Any:
    size = len(WORDS) + 2
    return new_model(tiny_config("llama", vocab_size=size, width=16, pad_token_id=0, eos_token_id=1), seed=seed)


def their_trainer(folder: Any, tokenizer: Any, model: Any, **options: Any) -> Any:
    from datasets import Dataset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of trl and what it calls
        args = trl.DPOConfig(
            output_dir=str(folder / "trl"),
            report_to="none",
            bf16=False,
            gradient_checkpointing=False,
            **SAME,
            **options,
        )
        return DPOTrainer(model, args=args, train_dataset=Dataset.from_list(PAIRS), processing_class=tokenizer)


def first_log(trainer: Any, name: str) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    return float(next(entry[name] for entry in trainer.state.log_history if name in entry))


def test_the_reference_is_the_model_in_memory(tmp_path: Any, tokenizer: Any) -> None:
    """Without a ref_model TRL loads the model again by its name; ours takes the one it was given."""
    start().save_pretrained(tmp_path / "model")
    model = load_model(tmp_path / "model")
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(1.5)  # trained a little since it was saved, say
    theirs = their_trainer(tmp_path, tokenizer, model).ref_model
    saved, changed = load_model(tmp_path / "model").state_dict(), model.state_dict()
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(theirs.state_dict()[name], saved[name])
    assert not torch.equal(changed[name], saved[name])
    assert torch.equal(Reference.initial(model).model.state_dict()[name], changed[name])


def test_micro_batches_of_unequal_size(tmp_path: Any, tokenizer: Any) -> None:
    """Three pairs as one batch give one gradient. As batches of two and one TRL takes the mean of two means, where the
    lone pair counts twice; ours is the gradient of the three."""
    start().save_pretrained(tmp_path / "model")

    def theirs(**options: Any) -> float:
        return first_log(their_trainer(tmp_path, tokenizer, load_model(tmp_path / "model"), **options), "grad_norm")

    def ours(**options: Any) -> float:
        model, (rows, _) = load_model(tmp_path / "model"), by_us(PAIRS, tokenizer)
        reference = Reference.initial(model).log_probs(rows)
        args = training_arguments(tmp_path / "us", **SAME, **options)
        trainer = PreferenceTrainer(model, make_objective("dpo", beta=0.1), args, rows, reference=reference)
        return first_log(trainer, "grad_norm")

    whole = {"per_device_train_batch_size": 3}
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    expected = theirs(**whole)
    assert ours(**whole) == pytest.approx(expected, rel=1e-5)
    assert ours(**split) == pytest.approx(expected, rel=1e-5)
    assert abs(theirs(**split) - expected) > 0.01 * expected


def test_a_tie_is_half_right_here_and_wrong_there(tmp_path: Any, tokenizer: Any) -> None:
    """Before the first step all margins are 0: no better and no worse than chance."""
    start().save_pretrained(tmp_path / "model")
    theirs = their_trainer(tmp_path, tokenizer, load_model(tmp_path / "model"), per_device_train_batch_size=3)
    assert first_log(theirs, "rewards/accuracies") == 0.0
    equal = torch.tensor([-3.0, -5.0])
    batch = PairLogProbs(
        policy_chosen=equal, policy_rejected=2 * equal, reference_chosen=equal, reference_rejected=2 * equal
    )
    ours = pair_metrics(make_objective("dpo", beta=0.1), batch, torch.zeros(2))
    assert ours["rewards/accuracies"].tolist() == [0.5, 0.5]
