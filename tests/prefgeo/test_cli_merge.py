"""`prefgeo merge`: uniform, given and learned weights, trajectories and adapters, and bad input as one sentence."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefgeo.cli import main

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from safetensors.torch import load_file  # noqa: E402

PAIRS = [{"prompt": f"{k}?", "chosen": " a" * (1 + k % 3), "rejected": " b" * (1 + k % 2)} for k in range(12)]
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 4}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints of one model, a model of another vocabulary, a wider one, and pairs."""
    from llm_backend.toy import make_model, make_tokenizer

    folder = tmp_path_factory.mktemp("merge")
    tokenizer, other = make_tokenizer(["a b c ?"] * 4, 270), make_tokenizer(["quite other words"] * 9, 270)
    for t in range(3):
        make_model(len(tokenizer), t, **SIZES).save_pretrained(str(folder / "run" / f"checkpoint-{t}"))
        tokenizer.save_pretrained(str(folder / "run" / f"checkpoint-{t}"))
    make_model(len(other), 0, **SIZES).save_pretrained(str(folder / "foreign"))
    other.save_pretrained(str(folder / "foreign"))
    make_model(len(tokenizer), 0, **(SIZES | {"hidden_size": 32})).save_pretrained(str(folder / "wide"))
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    return folder


@pytest.fixture
def place(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to work in, as the working directory."""
    shutil.copytree(models, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


ONE, TWO, THREE = (f"run/checkpoint-{t}" for t in range(3))


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main(["merge", *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def weights_of(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = load_file(Path(folder) / "model.safetensors")
    return found


def test_uniform_is_the_default_and_a_table_says_what_was_done(place: Path, capsys: Any) -> None:
    status, out, err = said(capsys, ONE, TWO, "--out", "out")
    assert (status, err) == (0, "")
    assert "run/checkpoint-1" in out and "0.500000" in out
    assert "lm_head.weight is tied" not in out
    assert "model in out:" in out and "float32" in out and "MB written" in out
    merged, one, two = (weights_of(each) for each in ("out", ONE, TWO))
    for name, value in merged.items():
        torch.testing.assert_close(value, 0.5 * (one[name] + two[name]), rtol=0, atol=1e-7)
    assert (place / "out" / "tokenizer.json").read_bytes() == (place / ONE / "tokenizer.json").read_bytes()


def test_given_weights_a_dtype_shards_and_json(place: Path, capsys: Any) -> None:
    options = ("--weights", "0.2, 0.3,0.5", "--dtype", "bfloat16", "--max-shard-size", "5KB", "--json")
    status, out, _ = said(capsys, "run", "--out", "out", *options)
    document = json.loads(out)
    assert status == 0 and document["dtypes"] == ["bfloat16"] and document["kind"] == "model"
    assert [entry["weight"] for entry in document["inputs"]] == [0.2, 0.3, 0.5]
    assert [Path(entry["path"]).name for entry in document["inputs"]] == [f"checkpoint-{t}" for t in range(3)]
    record = json.loads((place / "out" / "merge.json").read_text())
    assert record == {key: value for key, value in document.items() if key != "out"}
    assert len(list((place / "out").glob("model-*.safetensors"))) > 2
    again = said(capsys, "run", "--out", "out")
    assert again[0] == 2 and "out exists and is left as it is" in again[2]
    assert said(capsys, "run", "--out", "out", "--force")[0] == 0
    assert not list((place / "out").glob("model-*.safetensors"))


def test_negative_weights_must_be_allowed(place: Path, capsys: Any) -> None:
    status, _, err = said(capsys, ONE, TWO, "--out", "out", "--weights=1.5,-0.5")
    assert status == 2 and "extrapolates beyond the models" in err
    assert said(capsys, ONE, TWO, "--out", "out", "--weights=1.5,-0.5", "--allow-extrapolation")[0] == 0


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_learned_weights_are_the_best_on_the_simplex(place: Path, capsys: Any, precision: str) -> None:
    """Against a grid over the simplex, whose merges are written and scored one by one."""
    from llm_backend.data import load_preferences
    from llm_backend.merging import MergedMargins
    from llm_backend.tokenization import tokenize_preferences
    from llm_backend.tokenizers import load_tokenizer

    options = ("--data", "pairs.jsonl", "--beta", "0.5", "--entropy", "0.05", "--precision", precision)
    status, out, err = said(capsys, "run", "--out", "out", "--weights", "learned", *options, "--json")
    assert status == 0, err
    learned = json.loads(out)["learned"]
    assert learned["pairs"] == 12 and learned["evaluations"] < 20 and learned["data"] == "pairs.jsonl"

    rows = tokenize_preferences(load_preferences("pairs.jsonl"), load_tokenizer(ONE)).dataset.to_list()
    margins = MergedMargins([ONE, TWO, THREE], rows, dtype="float64")

    def value(shares: np.ndarray) -> float:
        loss = np.logaddexp(0.0, -0.5 * margins.values(shares)).mean()
        return float(loss + 0.05 * np.sum(shares * np.log(np.maximum(shares, 1e-300))))

    best = value(np.array(learned["shares"]))
    assert best == pytest.approx(learned["loss"] - 0.05 * learned["entropy"], abs=1e-6)
    assert learned["loss_of_average"] - learned["loss"] > 1e-3
    for i in range(6):
        for j in range(6 - i):
            assert value(np.array([i, j, 5 - i - j]) / 5.0) >= best - 1e-7
    merged, inputs = weights_of("out"), [weights_of(each) for each in (ONE, TWO, THREE)]
    name = "model.norm.weight"
    wanted = sum(a * each[name].double() for a, each in zip(learned["shares"], inputs, strict=True))
    torch.testing.assert_close(merged[name].double(), wanted, rtol=1e-6, atol=1e-7)


def test_learning_says_what_it_found(place: Path, capsys: Any) -> None:
    options = ("--weights", "learned", "--data", "pairs.jsonl", "--limit", "5")
    status, out, _ = said(capsys, ONE, TWO, "--out", "out", *options)
    assert status == 0 and "learned from 5 pairs: preference loss" in out and "KKT residual" in out


def test_adapters(place: Path, capsys: Any) -> None:
    pytest.importorskip("peft")
    from llm_backend.models import Lora, load_model, open_for_training

    for t in range(2):
        open_for_training(load_model(ONE), Lora(2, 2), seed=t).save_pretrained(f"lora-{t}")
    status, out, _ = said(capsys, "lora-0", "lora-1", "--out", "adapter")
    assert status == 0 and "adapter in adapter:" in out
    assert json.loads((place / "adapter" / "adapter_config.json").read_text())["r"] == 4
    status, out, _ = said(capsys, "lora-0", "lora-1", "--out", "whole", "--base", ONE)
    assert status == 0 and "adapters into base in whole" in out
    assert (place / "whole" / "tokenizer.json").is_file()
    arguments = ("lora-0", "lora-1", "--out", "x", "--weights", "learned", "--data", "pairs.jsonl")
    status, _, err = said(capsys, *arguments)
    assert status == 2 and "weights of adapters cannot be learned; merge lora-0 into its base first (--base)" in err


def refused(capsys: Any, place: Path, match: str, *arguments: str) -> None:
    before = sorted(place.rglob("*"))
    status, out, err = said(capsys, *arguments)
    assert (status, out) == (2, ""), err
    assert match in err and err.startswith("prefgeo: ") and err.count("\n") == 1
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    ("match", "arguments"),
    [
        ("2 models need 2 weights, got 3", (ONE, TWO, "--weights", "0.2,0.3,0.5")),
        ("the weights must sum to 1, but they sum to 0.9", (ONE, TWO, "--weights", "0.5,0.4")),
        ("every weight must be a finite number, got nan, 1", (ONE, TWO, "--weights", "nan,1")),
        ("--weights must be uniform, learned, or numbers as in 0.2,0.3,0.5, got 'best'", (ONE, "--weights", "best")),
        ("--weights learned needs the pairs to learn from: --data FILE", (ONE, TWO, "--weights", "learned")),
        ("--max-length is for learning weights; leave it out", (ONE, TWO, "--max-length", "9")),
        ("--boundary is for learning weights; leave it out", (ONE, TWO, "--boundary", "joint")),
        ("--precision is for learning weights; leave it out", (ONE, TWO, "--precision", "float64")),
        ("--device is for learning weights; leave it out", (ONE, TWO, "--device", "cpu")),
        ("wide/config.json says hidden_size = 32, but run/checkpoint-0/config.json says 16", (ONE, "wide")),
        ("foreign/tokenizer.json has another vocabulary than run/checkpoint-0/tokenizer.json", (ONE, "foreign")),
        ("nowhere is no folder", (ONE, "nowhere")),
        ("run/checkpoint-0 and the input run/checkpoint-0 overlap", (ONE, TWO, "--out", ONE, "--force")),
        ("wide exists and is left as it is", (ONE, TWO, "--out", "wide")),
        ("dtype must be one of float32, float64, bfloat16, float16, got 'int4'", (ONE, TWO, "--dtype", "int4")),
        ("--max-shard-size must be a size like 5GB, 200MB or 4096, got 'big'", (ONE, TWO, "--max-shard-size", "big")),
        ("pairs.jsonl is no folder", (ONE, "pairs.jsonl")),
        ("a base is for adapters", (ONE, TWO, "--base", "wide")),
        ("--precision must be one of", (ONE, TWO, "--weights=learned", "--data=pairs.jsonl", "--precision=half")),
        ("the beta of the weights must be", (ONE, TWO, "--weights=learned", "--data=pairs.jsonl", "--beta=0")),
        ("the device 'quantum' cannot be used", (ONE, "--weights=learned", "--data=pairs.jsonl", "--device=quantum")),
        ("missing.jsonl", (ONE, TWO, "--weights=learned", "--data=missing.jsonl")),
    ],
)
def test_bad_input_is_one_sentence(capsys: Any, place: Path, match: str, arguments: tuple[str, ...]) -> None:
    target = () if "--out" in arguments else ("--out", "out")
    refused(capsys, place, match, *arguments, *target)


def test_trajectories_and_files_that_are_not_whole(capsys: Any, place: Path) -> None:
    whole = (place / TWO / "model.safetensors").read_bytes()
    (place / TWO / "model.safetensors").write_bytes(whole[:-100])
    refused(capsys, place, "run/checkpoint-1/model.safetensors is cut short", "run", "--out", "out")
    (place / TWO / "model.safetensors").unlink()
    refused(capsys, place, "run/checkpoint-1 holds neither model.safetensors nor", "run", "--out", "out")
    (place / THREE).rename(place / "run" / "checkpoint-3")
    refused(capsys, place, "run lacks checkpoint-2, between checkpoint-1 and checkpoint-3", "run", "--out", "out")
    (place / "run" / "other-1").mkdir()
    refused(capsys, place, "run holds folders of several names, 'checkpoint-' and 'other-'", "run", "--out", "out")
    (place / "empty").mkdir()
    refused(capsys, place, "empty holds neither a model nor checkpoints", "empty", "--out", "out")


@pytest.mark.parametrize(
    ("numbers", "lacks"),
    [
        ([0, 1, 2], None), ([1, 2, 3], None), ([100, 200, 250], None), ([200, 300, 400], None), ([2, 3], None),
        ([7], None),
        ([0, 1, 3], 2), ([100, 300, 400], 200), ([100, 200, 400], 300), ([1, 3], 2),
    ],
)  # fmt: skip
def test_which_checkpoints_are_missing(tmp_path: Path, numbers: list[int], lacks: int | None) -> None:
    from llm_backend.merging import MergeError
    from llm_backend.merging.inputs import trajectory

    for number in numbers:
        (tmp_path / f"round-{number}").mkdir()
    if lacks is None:
        assert [path.name for path in trajectory(tmp_path)] == [f"round-{number}" for number in numbers]
    else:
        with pytest.raises(MergeError, match=f"lacks round-{lacks}, between"):
            trajectory(tmp_path)


def test_hub_names(capsys: Any, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[str] = []

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        asked.append(name)
        if name == "some/model":
            return str(place / TWO)
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert said(capsys, ONE, "some/model", "--out", "out")[0] == 0
    match = "there is no folder no/model, and it cannot be loaded from the hub either: OSError: no network"
    refused(capsys, place, match, ONE, "no/model", "--out", "other")
    assert asked == ["some/model", "no/model"]


def test_without_torch_the_command_says_what_to_install(
    capsys: Any, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    status, _, err = said(capsys, ONE, TWO, "--out", "out")
    assert status == 2 and "install it with: pip install 'prefgeo[llm]'" in err


def test_pairs_whose_tokens_merge_need_a_word_on_where_to_part_them(place: Path, capsys: Any) -> None:
    """The message tells what to set, and there is an option of that name."""
    (place / "merging.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{k} ", "chosen": "a b", "rejected": "b"}) + "\n" for k in range(4))
    )
    learned = (ONE, TWO, "--out", "out", "--weights", "learned", "--data", "merging.jsonl")
    status, _, err = said(capsys, *learned)
    assert status == 2 and "set boundary to 'joint' or 'separate'" in err and not (place / "out").exists()
    assert said(capsys, *learned, "--boundary", "separate")[0] == 0
    assert json.loads((place / "out" / "merge.json").read_text())["learned"]["boundary"] == "separate"
