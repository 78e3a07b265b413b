"""What cannot be merged is refused in one sentence that names the file or tensor, and nothing is written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_backend.merging import MergeError, merge_folders
from llm_backend.models import new_model, tiny_config


def saved(folder: Path, seed: int = 0, **options: Any) -> Path:
    config = tiny_config(**{"vocab_size": 40, "width": 16, "layers": 2, "heads": 2, **options})
    new_model(config, seed=seed).save_pretrained(folder)
    return folder


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    return [saved(tmp_path / "a", 0), saved(tmp_path / "b", 1)]


def refused(folders: list[Path], match: str, weights: list[float] | None = None, **options: Any) -> None:
    out = folders[0].parent / "out"
    before = sorted(path for path in folders[0].parent.rglob("*"))
    with pytest.raises(MergeError, match=match) as caught:
        merge_folders(folders, weights or [1 / len(folders)] * len(folders), options.pop("out", out), **options)
    assert "\n" not in str(caught.value)
    assert sorted(path for path in folders[0].parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        ([0.5], "2 models need 2 weights, got 1"),
        ([0.5, 0.3, 0.2], "2 models need 2 weights, got 3"),
        ([0.5, 0.4], "must sum to 1, but they sum to 0.9"),
        ([0.5, 0.5 + 1e-8], "must sum to 1, but they sum to 1.00000001"),
        ([math.nan, 1.0], "every weight must be a finite number, got nan, 1"),
        ([math.inf, -math.inf], "every weight must be a finite number, got inf, -inf"),
        ([1.5, -0.5], "the weight -0.5 is negative, which extrapolates"),
    ],
)
def test_weights(pair: list[Path], weights: list[float], match: str) -> None:
    refused(pair, match, weights)


def test_extrapolation_can_be_allowed(pair: list[Path]) -> None:
    out = pair[0].parent / "out"
    merge_folders(pair, [1.5, -0.5], out, extrapolate=True)
    merged, a, b = (load_file(each / "model.safetensors") for each in (out, *pair))
    for name, value in merged.items():
        torch.testing.assert_close(value.double(), 1.5 * a[name].double() - 0.5 * b[name].double(), rtol=0, atol=1e-7)
    merge_folders(pair, [0.5, 0.5 + 1e-10], out, overwrite=True)  # rounding is no mistake


def test_models_of_another_kind(tmp_path: Path) -> None:
    a = saved(tmp_path / "a")
    refused([a, saved(tmp_path / "wide", width=32)], r"wide.config.json says \w+ = \d+, but .*a.config.json says \d+")
    refused([a, saved(tmp_path / "deep", layers=3)], r"says num_hidden_layers = 3, but .* says 2; only models of one")
    refused([a, saved(tmp_path / "untied", tied=False)], r"says tie_word_embeddings = false, but .* says true")
    refused([a, saved(tmp_path / "gpt2", architecture="gpt2")], r"says architectures = \[.GPT2LMHeadModel.\], but")
    refused([a, saved(tmp_path / "more", vocab_size=48)], r"says vocab_size = 48, but .* says 40")


def test_a_config_with_defaults_written_out_is_the_same(pair: list[Path]) -> None:
    config = json.loads((pair[1] / "config.json").read_text())
    del config["rms_norm_eps"], config["attention_bias"]
    (pair[1] / "config.json").write_text(json.dumps(config | {"use_cache": False, "transformers_version": "4.0"}))
    merge_folders(pair, [0.5, 0.5], pair[0].parent / "out")
    (pair[1] / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    refused(pair, "says rms_norm_eps = 0.001, but", out=pair[0].parent / "other")


def test_other_vocabularies(pair: list[Path]) -> None:
    def tokenizer(folder: Path, tokens: list[str], **more: Any) -> None:
        vocabulary = {token: number for number, token in enumerate(tokens)}
        document = {"model": {"type": "BPE", "vocab": vocabulary, "merges": []}, "added_tokens": [], **more}
        (folder / "tokenizer.json").write_text(json.dumps(document))

    tokenizer(pair[0], ["a", "b"])
    tokenizer(pair[1], ["b", "a"])
    refused(pair, r"b.tokenizer.json has another vocabulary than .*a.tokenizer.json; only models whose token ids mean")
    tokenizer(pair[1], ["a", "b"], truncation={"max_length": 3})
    merge_folders(pair, [0.5, 0.5], pair[0].parent / "out")


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_tensors_that_do_not_match(pair: list[Path]) -> None:
    norm = "model.norm.weight"
    edit(pair[1], lambda t: t.update({norm: torch.ones(17)}))
    refused(pair, r"model.norm.weight is 17 in .*b.model.safetensors but 16 in .*a.model.safetensors; only models of")
    edit(pair[1], lambda t: t.pop(norm))
    refused(pair, r"model.norm.weight is in .*a.model.safetensors but not in .*b; only models with the same tensors")
    refused(pair[::-1], r"model.norm.weight is in .*a.model.safetensors but not in .*b; only models with the same")
    edit(pair[1], lambda t: t.update({norm: torch.full((16,), math.nan)}))
    refused(pair, r"the merged model.norm.weight holds values that are not finite.*look for broken weights in .*a")
    edit(pair[1], lambda t: t.update({norm: torch.full((16,), 1e6)}))
    refused(pair, r"the merged model.norm.weight .* or beyond float16", dtype="float16")
    edit(pair[1], lambda t: t.update({norm: torch.ones(16, dtype=torch.int32)}))
    refused(pair, r"model.norm.weight is int32 in .*b.* but float32 in .*a.model.safetensors")


def test_missing_and_damaged_files(pair: list[Path]) -> None:
    a, b = pair
    file = b / "model.safetensors"
    whole = file.read_bytes()
    refused([a, b.parent / "nowhere"], r"nowhere is no folder; name the folder of a model")
    for size in (len(whole) - 1, len(whole) // 2):
        file.write_bytes(whole[:size])
        refused(pair, rf"b.model.safetensors is cut short \({size:,} bytes, its header says {len(whole):,}\)")
    file.write_bytes(whole + b"x")
    refused(pair, "is longer than it should be")
    for damaged in (b"", b"short", whole[:100], b"\xff" * 64):
        file.write_bytes(damaged)
        refused(pair, r"b.model.safetensors is cut short or is no safetensors file")
    file.write_bytes(whole[:8] + b"?" + whole[9:])
    refused(pair, r"b.model.safetensors has a damaged header")
    file.write_bytes(whole.replace(b'"data_offsets":[0,', b'"data_offsets":[4,', 1))
    refused(pair, r"b.model.safetensors has a damaged header")
    file.write_bytes(whole.replace(b'"F32"', b'"F4?"', 1))
    refused(pair, r"in .*b.model.safetensors is F4\?, which cannot be averaged")
    file.rename(b / "pytorch_model.bin")
    refused(pair, r"b holds neither model.safetensors nor .*; it holds pytorch_model.bin, so save the model again")
    (b / "config.json").unlink()
    refused(pair, r"b holds no config.json and no adapter, so it is no model folder")


def test_a_missing_shard(pair: list[Path]) -> None:
    from llm_backend.models import load_model

    b = pair[1]
    load_model(b).save_pretrained(b, max_shard_size="3KB")
    (b / "model.safetensors").unlink()
    (b / "model-00002-of-00004.safetensors").unlink(missing_ok=True)
    lost = sorted(b.glob("model-*.safetensors"))[0]
    kept = lost.read_bytes()
    lost.unlink()
    refused(pair, rf"b lacks {lost.name}, which its index names")
    lost.write_bytes(kept)
    (b / "model.safetensors.index.json").write_text('{"weight_map": {"x": "../a/model.safetensors"}}')
    refused(pair, "names files of other folders")
    (b / "model.safetensors.index.json").write_text("[]")
    refused(pair, "is no JSON object")


def test_where_the_result_goes(pair: list[Path]) -> None:
    a, b = pair
    refused(pair, r"a and the input .*a overlap; choose another folder", out=a, overwrite=True)
    refused(pair, r"inside and the input .*b overlap", out=b / "inside")
    refused(pair, "overlap", out=a.parent / "link" / ".." / "a", overwrite=True)
    refused(pair, r"model.safetensors and the input .*a overlap", out=a / "model.safetensors")
    other = a.parent / "other"
    other.mkdir()
    (other / "precious.txt").write_text("")
    refused(pair, r"other exists and is left as it is; choose another folder, or overwrite it", out=other)
    refused(pair, r"other holds no model, so it is not overwritten", out=other, overwrite=True)
    refused(pair, r"precious.txt is a file; give the name", out=other / "precious.txt", overwrite=True)


def test_other_options(pair: list[Path]) -> None:
    with pytest.raises(MergeError, match="a merge needs at least one model, got none"):
        merge_folders([], [], pair[0].parent / "out")
    refused(pair, r"dtype must be one of float32, .*, got 'int8'", dtype="int8")
    refused(pair, "max_shard_bytes must be at least 1, got 0", max_shard_bytes=0)
    refused(pair, r"a base is for adapters, but .*a is a whole model", base=pair[0].parent / "base")
    config = json.loads((pair[1] / "config.json").read_text())
    (pair[1] / "config.json").write_text(json.dumps(config | {"quantization_config": {"bits": 4}}))
    refused(pair, "b is quantised; merge the models before quantising them")


def test_a_disk_that_is_too_small_is_seen_before_the_work_starts(
    pair: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_backend.merging import merge

    monkeypatch.setattr(merge.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10}))
    refused(pair, r"the result takes [\d,]+ bytes, but .* has only 10 free")
