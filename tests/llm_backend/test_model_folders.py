"""Model folders that are damaged, and names in recipes that are relative to the recipe's folder: one sentence each."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file

from llm_backend.data import DataError
from llm_backend.errors import ModelError
from llm_backend.models import Lora, load_model, open_for_training
from llm_backend.tokenizers import load_tokenizer
from llm_backend.toy import make_model


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "whole"
    make_model(vocab_size=270, seed=0).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kept", [0, 40, 2000])
def test_weights_that_were_cut_short_are_one_sentence(whole: Path, tmp_path: Path, kept: int) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "cut"))
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content[:kept])
    with pytest.raises(ModelError, match=r"no causal LM can be loaded from '.*cut': .*header") as refused:
        load_model(folder)
    assert "\n" not in str(refused.value)


def test_missing_tensors_are_refused_and_not_drawn_at_random(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "parts"))
    tensors = load_file(folder / "model.safetensors")
    lost = sorted(name for name in tensors if "layers.0" in name or "h.0." in name)[0]
    del tensors[lost]
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"lack 1 tensors of the model, as {lost}"):
        load_model(folder)
    assert load_model(whole).num_parameters() > 0


def test_an_adapter_is_named_as_one(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"is an adapter and no whole model; .*prefgeo merge .* --base MODEL"):
        load_model(tmp_path)


def test_a_damaged_tokenizer_is_not_said_to_be_absent(whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "damaged"))
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"no tokenizer that can be read in the folder .*damaged \("):
        load_tokenizer(folder)
    with pytest.raises(DataError, match=r"'\.\./nowhere/at/all', neither as a folder nor on the hub"):
        load_tokenizer("../nowhere/at/all")


def test_layers_that_lora_does_not_find_are_one_sentence(whole: Path) -> None:
    with pytest.raises(ModelError, match=r"LoRA finds no layers called q_prjo; linear layers here: .*q_proj"):
        open_for_training(load_model(whole), Lora(2, 4.0, ("q_prjo",)))
