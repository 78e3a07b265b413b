"""Merged LoRA adapters: the function of the merge is that of the weighted sum of their changes of the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_backend.batching import Collator
from llm_backend.log_probs import response_log_probs
from llm_backend.merging import MergeError, merge_folders
from llm_backend.models import Lora, load_model, new_model, open_for_training, tiny_config

peft = pytest.importorskip("peft")
# peft reads a name that transformers is about to drop
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
WEIGHTS = [0.2, 0.5, 0.3]
ROWS = [{"prompt_ids": [1, 2, 3], "chosen_ids": [4, 5, 6], "rejected_ids": [7, 8]}]


def base_model(folder: Path, architecture: str = "llama") -> Path:
    config = tiny_config(architecture, vocab_size=40, width=16, layers=2, heads=2)
    new_model(config, seed=0, dtype="float64").save_pretrained(folder)
    return folder


def adapter(folder: Path, base: Path, seed: int, lora: Lora, **config: Any) -> Path:
    """An adapter whose B is not 0."""
    model = open_for_training(load_model(base, dtype="float64"), lora, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.3, generator=generator)
    model.save_pretrained(folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | config))
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({name: value.double() for name, value in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


def under(base: Path, folder: Path) -> Any:
    return peft.PeftModel.from_pretrained(load_model(base, dtype="float64"), folder, autocast_adapter_dtype=False)


def whole_weights(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    """W + s B A of every layer, by PEFT's own merging."""
    model = under(base, folder).merge_and_unload()
    return {name: value.detach() for name, value in model.named_parameters()}


def log_probs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat(list(response_log_probs(model, Collator()(ROWS)).log_probs.values()))


@pytest.fixture(params=["llama", "gpt2"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, list[Path]]:
    """A base, and three adapters of other ranks and scales, one of them with rank-stabilised scale."""
    base = base_model(tmp_path / "base", request.param)
    kinds = [(Lora(2, 4), {}), (Lora(3, 12), {}), (Lora(4, 2), {"use_rslora": True})]
    folders = [adapter(tmp_path / f"lora{t}", base, t, lora, **more) for t, (lora, more) in enumerate(kinds)]
    return base, folders


def test_the_merged_adapter_changes_the_weights_by_the_weighted_sum(place: tuple[Path, list[Path]]) -> None:
    base, folders = place
    out = base.parent / "out"
    report = merge_folders(folders, WEIGHTS, out)
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 9
    assert report.written.kind == "adapter"
    merged, changed = whole_weights(base, out), [whole_weights(base, folder) for folder in folders]
    start = {name: value.detach() for name, value in load_model(base, dtype="float64").named_parameters()}
    for name, value in merged.items():
        wanted = sum(w * (each[name] - start[name]) for w, each in zip(WEIGHTS, changed, strict=True))
        torch.testing.assert_close(value - start[name], wanted, rtol=1e-10, atol=1e-13)
    assert any((merged[name] - start[name]).abs().max() > 0.1 for name in merged), "nothing was changed"

    factors = [load_file(folder / "adapter_model.safetensors") for folder in folders]
    name = next(name for name in factors[0] if "lora_A" in name)
    assert load_file(out / "adapter_model.safetensors")[name].shape[0] == sum(each[name].shape[0] for each in factors)


def test_adapters_merged_into_their_base_are_the_same_function(place: tuple[Path, list[Path]]) -> None:
    base, folders = place
    as_adapter, whole = base.parent / "adapter", base.parent / "whole"
    merge_folders(folders, WEIGHTS, as_adapter)
    report = merge_folders(folders, WEIGHTS, whole, base=base, max_shard_bytes=5000)
    expected = log_probs(under(base, as_adapter))
    torch.testing.assert_close(log_probs(load_model(whole, dtype="float64")), expected, rtol=1e-10, atol=1e-10)
    assert (log_probs(load_model(base, dtype="float64")) - expected).abs().max() > 1e-3
    record = json.loads((whole / "merge.json").read_text())
    assert record["base"]["path"] == str(base) and len(record["inputs"]) == 3
    assert set(record["base"]["sha256"]) == {"model.safetensors"}
    assert report.written.kind == "adapters into base" and len(list(whole.glob("*.safetensors"))) > 2


def test_averages_of_the_factors_would_be_another_function(tmp_path: Path) -> None:
    """Why factors are put side by side: equal changes, split otherwise, must merge to themselves."""
    base = base_model(tmp_path / "base")
    one = adapter(tmp_path / "one", base, 0, Lora(2, 2))
    other = adapter(tmp_path / "other", base, 0, Lora(2, 2))
    tensors = load_file(other / "adapter_model.safetensors")
    save_file({name: -value for name, value in tensors.items()}, other / "adapter_model.safetensors")  # (-B)(-A) = BA
    merge_folders([one, other], [0.5, 0.5], tmp_path / "out")
    wanted, found = whole_weights(base, one), whole_weights(base, tmp_path / "out")
    assert all(torch.allclose(found[name], value, rtol=0, atol=1e-14) for name, value in wanted.items())


def test_a_weight_of_zero_adds_no_rank_and_one_in_half_precision(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base")
    folders = [adapter(tmp_path / f"lora{t}", base, t, Lora(2, 2)) for t in range(2)]
    merge_folders(folders, [0.0, 1.0], tmp_path / "out")
    wanted = load_file(folders[1] / "adapter_model.safetensors")
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert wanted.keys() == found.keys() and all(torch.equal(value, found[name]) for name, value in wanted.items())
    merge_folders(folders, [0.5, 0.5], tmp_path / "half", dtype="bfloat16")
    assert {v.dtype for v in load_file(tmp_path / "half" / "adapter_model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"peft_type": "IA3"}, "is an adapter of type IA3; only LoRA adapters can be merged"),
        ({"use_dora": True}, "has use_dora .DoRA's magnitudes., for which merging has no one meaning"),
        ({"modules_to_save": ["lm_head"]}, "has modules_to_save"),
        ({"rank_pattern": {"q_proj": 4}}, "has rank_pattern"),
        ({"bias": "all"}, "trains biases .bias = 'all'.; merge it into its base first"),
        ({"init_lora_weights": "pissa"}, "was started by pissa, which changes the base model too"),
        ({"r": 5}, "has factors of rank 2, but its configuration says r = 5"),
        ({"base_model_name_or_path": "another"}, "has base_model_name_or_path = 'another', but .* has"),
        ({"fan_in_fan_out": True}, "has fan_in_fan_out = True, but .* has False"),
    ],
)
def test_what_has_no_one_meaning_is_refused(tmp_path: Path, config: dict[str, Any], match: str) -> None:
    base = base_model(tmp_path / "base")
    same = {"base_model_name_or_path": "base"}
    folders = [adapter(tmp_path / "one", base, 0, Lora(2, 2), **same)]
    folders.append(adapter(tmp_path / "two", base, 1, Lora(2, 2), **(same | config)))
    with pytest.raises(MergeError, match=match):
        merge_folders(folders, [0.5, 0.5], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_adapters_that_do_not_fit(tmp_path: Path) -> None:
    base = base_model(tmp_path / "base")
    one = adapter(tmp_path / "one", base, 0, Lora(2, 2))
    some = adapter(tmp_path / "some", base, 0, Lora(2, 2, targets=("q_proj",)))

    def refuse(folders: list[Path], match: str, **options: Any) -> None:
        with pytest.raises(MergeError, match=match):
            merge_folders(folders, [0.5, 0.5], tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()

    refuse([one, some], r"is adapted in only one of .*one and .*some; merge adapters of the same target modules")
    refuse([one, base], r"one is an adapter and .*base a whole model; merge the adapter into its base first")
    refuse([one, one], r"x is an adapter; name the whole model", base=adapter(tmp_path / "x", base, 1, Lora(2, 2)))
    wide = tmp_path / "wide"
    new_model(tiny_config(vocab_size=40, width=32, layers=2, heads=2), seed=0).save_pretrained(wide)
    refuse([one, one], r"is \(.*\) in .*wide.*, but the adapters change a layer of \(.*\); name the base", base=wide)
    refuse([one, one], r"gpt has no model.layers", base=base_model(tmp_path / "gpt", "gpt2"))
    tensors = load_file(one / "adapter_model.safetensors")
    name = next(name for name in tensors if "lora_B" in name)
    save_file({key: value for key, value in tensors.items() if key != name}, one / "adapter_model.safetensors")
    refuse([one, one], "has only one of the two factors of")
    save_file({**tensors, "base_model.model.lm_head.weight": torch.ones(2)}, one / "adapter_model.safetensors")
    refuse([one, one], "which is no factor of LoRA")
