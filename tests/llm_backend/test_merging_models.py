"""Merged model folders: the weighted sum, exactly, in every dtype and layout; and nothing half-written."""

from __future__ import annotations

import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_backend.merging import MergeError, merge_folders
from llm_backend.merging.weighted_sum import BLOCK
from llm_backend.models import load_model, new_model, tiny_config

WEIGHTS = [0.2, 0.5, 0.3]


def saved(folder: Path, seed: int, *, dtype: str = "float32", architecture: str = "llama", **options: Any) -> Path:
    config = tiny_config(architecture, **{"vocab_size": 40, "width": 16, "layers": 2, "heads": 2, **options})
    new_model(config, seed=seed, dtype=dtype).save_pretrained(folder)
    return folder


def three(folder: Path, **options: Any) -> list[Path]:
    return [saved(folder / str(t), t, **options) for t in range(3)]


def parameters(folder: Path, dtype: str = "float64") -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in load_model(folder, dtype=dtype).named_parameters()}


def by_hand(tensors: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
    return torch.stack([w * each.double() for w, each in zip(weights, tensors, strict=True)]).sum(dim=0)


def change(folder: Path, edit: Any, file: str = "model.safetensors") -> Path:
    tensors = load_file(folder / file)
    tensors = edit(tensors) or tensors
    save_file(tensors, folder / file, metadata={"format": "pt"})
    return folder


def config_of(folder: Path, **keys: Any) -> None:
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(document | keys))


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "mistral"])
def test_the_merge_is_the_weighted_sum(tmp_path: Path, architecture: str) -> None:
    folders = three(tmp_path, architecture=architecture, dtype="float64")
    report = merge_folders(folders, WEIGHTS, tmp_path / "out")
    merged, inputs = parameters(tmp_path / "out"), [parameters(folder) for folder in folders]
    for name, value in merged.items():
        torch.testing.assert_close(value, by_hand([each[name] for each in inputs], WEIGHTS), rtol=1e-14, atol=1e-15)
    assert report.written.n_parameters == sum(value.numel() for value in merged.values())
    assert report.written.dtypes == ("float64",)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_sums_are_wide_whatever_the_models_are_stored_in(tmp_path: Path, dtype: str) -> None:
    """The result is the float64 sum rounded once (half a spacing), plus float32 rounding errors on the way."""
    folders = three(tmp_path, dtype=dtype)
    merge_folders(folders, WEIGHTS, tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    inputs = [load_file(folder / "model.safetensors") for folder in folders]
    assert merged.keys() == inputs[0].keys()
    for name, value in merged.items():
        assert value.dtype == inputs[0][name].dtype
        exact = by_hand([each[name] for each in inputs], WEIGHTS)
        bound = torch.finfo(value.dtype).eps * (0.51 if dtype != "float32" else 4.0)
        torch.testing.assert_close(value.double(), exact, rtol=bound, atol=1e-7)  # fp16 is coarser near 0


def test_small_steps_between_half_precision_models_add_up(tmp_path: Path) -> None:
    """The average of 1 and 1 + 3 ulp is 1.5 ulp above 1 and rounds to 2; a sum in bfloat16 loses a weight like 0.3."""
    folders = three(tmp_path, dtype="bfloat16")
    values = torch.ones(40, 16, dtype=torch.bfloat16)
    for folder, step in zip(folders, (0, 0, 8), strict=True):
        change(folder, lambda t, step=step: t.update({"model.embed_tokens.weight": values + step * 2.0**-7}))
    merge_folders(folders, [0.4, 0.35, 0.25], tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(found, values + 2 * 2.0**-7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_equal_models_merge_to_themselves_and_a_weight_of_one_is_its_model(tmp_path: Path, dtype: str) -> None:
    folders = three(tmp_path, dtype=dtype)
    same = merge_folders([folders[1]] * 3, [1 / 3] * 3, tmp_path / "same")
    merge_folders(folders, [0.0, 1.0, 0.0], tmp_path / "one")
    wanted = (folders[1] / "model.safetensors").read_bytes()
    assert (tmp_path / "same" / "model.safetensors").read_bytes() == wanted
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == wanted
    assert len(same.hashes) == 3


def test_tensors_of_more_than_one_block(tmp_path: Path) -> None:
    folders = three(tmp_path, vocab_size=BLOCK // 16 * 2 + 5, layers=1)
    seen: list[tuple[int, int]] = []
    merge_folders(folders, WEIGHTS, tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    merged = load_file(tmp_path / "out" / "model.safetensors")
    inputs = [load_file(folder / "model.safetensors") for folder in folders]
    for name, value in merged.items():
        exact = by_hand([each[name] for each in inputs], WEIGHTS)
        torch.testing.assert_close(value.double(), exact, rtol=0, atol=3e-8)  # float32 sums of values below 0.1
    assert [done for done, _ in seen] == sorted(done for done, _ in seen) and seen[-1][0] == seen[-1][1]


def test_a_dtype_can_be_chosen_and_is_written_down(tmp_path: Path) -> None:
    folders = [saved(tmp_path / "a", 0), saved(tmp_path / "b", 1, dtype="bfloat16")]
    with pytest.raises(MergeError, match=r"is bfloat16 in .*b.model.safetensors but float32 in .*; choose the dtype"):
        merge_folders(folders, [0.5, 0.5], tmp_path / "out")
    merge_folders(folders, [0.5, 0.5], tmp_path / "out", dtype="float16")
    assert {value.dtype for value in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.float16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float16"
    assert load_model(tmp_path / "out", dtype="float16").dtype == torch.float16


@pytest.mark.parametrize("sharded", [False, True])
def test_shards_go_in_and_out(tmp_path: Path, sharded: bool) -> None:
    folders = three(tmp_path)
    if sharded:
        for t, folder in enumerate(folders):
            load_model(folder).save_pretrained(folder, max_shard_size=f"{3 + t}KB")  # each divided otherwise
            (folder / "model.safetensors").unlink()
        assert len(list(folders[0].glob("*.safetensors"))) > 2
    merge_folders(folders, WEIGHTS, tmp_path / "out")
    merge_folders(folders, WEIGHTS, tmp_path / "cut", max_shard_bytes=4000)
    merge_folders(folders, WEIGHTS, tmp_path / "whole", max_shard_bytes=10**9)
    names = [sorted(path.name for path in each.glob("*.safetensors*")) for each in (folders[0], tmp_path / "out")]
    assert names[0] == names[1], "the layout is the first input's"
    assert len(list((tmp_path / "cut").glob("model-*.safetensors"))) > 2
    assert [path.name for path in (tmp_path / "whole").glob("*.safetensors*")] == ["model.safetensors"]
    wanted = parameters(tmp_path / "out")
    for other in ("cut", "whole"):
        assert all(torch.equal(value, wanted[name]) for name, value in parameters(tmp_path / other).items())
    index = json.loads((tmp_path / "cut" / "model.safetensors.index.json").read_text())
    values = load_file(tmp_path / "whole" / "model.safetensors").values()
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in values)


def test_tied_weights_are_merged_once(tmp_path: Path) -> None:
    """Stored twice in one input and once in the other; a table that is tied by config but differs is refused."""
    once, twice = saved(tmp_path / "once", 0), saved(tmp_path / "twice", 1)
    change(twice, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    for number, folders in enumerate(([once, twice], [twice, once], [twice, twice])):
        out = tmp_path / f"out{number}"
        report = merge_folders(folders, [0.25, 0.75], out)
        assert report.written.ties == {"lm_head.weight": "model.embed_tokens.weight"}
        merged = load_file(out / "model.safetensors")
        assert "lm_head.weight" not in merged
        tables = [load_file(folder / "model.safetensors")["model.embed_tokens.weight"] for folder in folders]
        exact = by_hand(tables, [0.25, 0.75])
        torch.testing.assert_close(merged["model.embed_tokens.weight"].double(), exact, rtol=0, atol=1e-8)
    change(twice, lambda t: t.update({"lm_head.weight": t["lm_head.weight"] + 1.0}))
    with pytest.raises(MergeError, match=r"are one table, but lm_head.weight in .*twice.* equals no table"):
        merge_folders([once, twice], [0.5, 0.5], tmp_path / "refused")
    untied = [saved(tmp_path / f"u{t}", t, tied=False) for t in range(2)]
    merge_folders(untied, [0.5, 0.5], tmp_path / "untied")
    assert "lm_head.weight" in load_file(tmp_path / "untied" / "model.safetensors")


def test_whole_numbers_must_be_identical(tmp_path: Path) -> None:
    folders = three(tmp_path)
    for folder in folders:
        change(folder, lambda t: t.update({"ids": torch.arange(5), "mask": torch.tensor([True, False]), "n": 3 * ONE}))
    merge_folders(folders, WEIGHTS, tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(merged["ids"], torch.arange(5)) and merged["mask"].tolist() == [True, False]
    assert merged["n"].item() == 3 and merged["n"].shape == ()
    change(folders[2], lambda t: t.update({"ids": torch.arange(5) + 1}))
    with pytest.raises(MergeError, match=r"ids in .*2.model.safetensors differs .*; values of dtype int64 cannot be"):
        merge_folders(folders, WEIGHTS, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


ONE = torch.tensor(1, dtype=torch.int32)


def test_the_record_says_what_was_merged(tmp_path: Path) -> None:
    folders = three(tmp_path)
    (folders[0] / "tokenizer_config.json").write_text("{}")
    (folders[0] / "optimizer.pt").write_text("not ours")
    before = {path: path.read_bytes() for folder in folders for path in folder.iterdir()}
    report = merge_folders(folders, [0.5, 0.0, 0.5], tmp_path / "out")
    record = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert record == json.loads(json.dumps(report.to_json()))
    for entry, folder, weight in zip(record["inputs"], folders, [0.5, 0.0, 0.5], strict=True):
        wanted = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        assert entry == {"path": str(folder), "weight": weight, "sha256": {"model.safetensors": wanted}}
    assert record["versions"]["torch"] == version("torch")
    names = {"config.json", "generation_config.json", "tokenizer_config.json", "model.safetensors", "merge.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert before == {path: path.read_bytes() for folder in folders for path in folder.iterdir()}
    unhashed = merge_folders(folders, [0.5, 0.0, 0.5], tmp_path / "unhashed", hashed=False)
    assert unhashed.hashes[0] == {"model.safetensors": None}


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = three(tmp_path / "in")
    written: list[int] = []

    def full(descriptor: int, data: Any) -> int:
        written.append(len(data))
        if len(written) > 3:
            raise OSError(28, "No space left on device")
        return WRITE(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(MergeError, match=r"cannot write .*out: the disk is full; nothing was left behind"):
        merge_folders(folders, WEIGHTS, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"] and len(written) == 4


WRITE = os.write


def test_what_a_killed_merge_left_is_removed_and_a_living_one_is_left_alone(tmp_path: Path) -> None:
    import fcntl

    folders = three(tmp_path / "in")
    dead, living = tmp_path / ".out.1.aa.part", tmp_path / ".out.1.bb.part"
    for part in (dead, living):
        part.mkdir()
        (part / "model.safetensors").write_text("half")
    lock = os.open(living, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    merge_folders(folders, WEIGHTS, tmp_path / "out")
    os.close(lock)
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out", living.name}


def test_overwriting_replaces_the_whole_folder(tmp_path: Path) -> None:
    folders = three(tmp_path / "in")
    for t in (0, 1):
        merge_folders([folders[t]], [1.0], tmp_path / "out", overwrite=True)
        (tmp_path / "out" / f"note{t}").write_text("")
    assert not (tmp_path / "out" / "note0").exists()
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (folders[1] / "model.safetensors").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}


def test_an_older_result_comes_back_where_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rename fails; or a kill came between the two renames, and the next merge begins."""
    folder, out, usual = saved(tmp_path / "a", 0), tmp_path / "out", Path.rename
    merge_folders([folder], [1.0], out)
    before = (out / "merge.json").read_bytes()

    def failing(path: Path, target: Path) -> Path:
        if path.name.endswith(".part"):
            raise OSError(5, "Input/output error")
        return usual(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing)
        with pytest.raises(MergeError, match=r"cannot write .*out: Input/output error; nothing was left behind"):
            merge_folders([folder], [1.0], out, overwrite=True, hashed=False)
    assert (out / "merge.json").read_bytes() == before
    out.rename(tmp_path / ".out.1.aa.part.old")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing)
        with pytest.raises(MergeError):
            merge_folders([folder], [1.0], out, overwrite=True, hashed=False)
    assert (out / "merge.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "out"]


def test_a_tensor_of_a_block_is_no_head_whatever_its_name(tmp_path: Path) -> None:
    """Tied models: output.weight is a name of heads, but model.layers.0.attention.output.weight is another layer."""
    name, folders = "model.layers.0.attention.output.weight", [saved(tmp_path / str(t), t) for t in range(2)]
    for t, folder in enumerate(folders):
        change(folder, lambda tensors, t=t: tensors.update({name: torch.full((3, 2), float(t))}))
    assert merge_folders(folders, [0.25, 0.75], tmp_path / "out").written.ties == {}
    merged = load_file(tmp_path / "out" / "model.safetensors")
    torch.testing.assert_close(merged[name], torch.full((3, 2), 0.75))
