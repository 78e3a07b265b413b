"""The policy store: content addresses, whole or not there, and what it says of damage."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from safetensors.torch import load_file, save_file

from llm_backend.loops import LoopError, PolicyStore, StoreError
from llm_backend.loops.policies import folder_digest
from llm_backend.loops.store import key_of
from llm_backend.models import Lora, open_for_training
from tests.llm_backend import loop_world

WORDS = loop_world.tokenizer()


@pytest.fixture
def store(tmp_path):
    return PolicyStore(tmp_path)


def tensors(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_policy_comes_back_exactly_and_once(store, architecture):
    model = loop_world.model(WORDS, architecture)
    first = store.add(model, WORDS)
    for name, value in tensors(store.model(first)).items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert store.add(model, WORDS) == first and len(list((store.root / "policies").iterdir())) == 1
    assert store.add(store.load(first), first) == first, "a copy with copied tokenizer files is the same policy"
    other = store.add(loop_world.model(WORDS, architecture, seed=1), WORDS)
    assert other != first and store.size() > 2 * 4 * sum(p.numel() for p in model.parameters()) * 0.99
    assert PolicyStore(store.root).get(first.digest) == first


def test_the_digest_is_of_the_content_not_of_the_files(store, tmp_path):
    model = loop_world.model(WORDS)
    policy = store.add(model, WORDS)
    sharded = tmp_path / "sharded"
    model.save_pretrained(sharded, max_shard_size="20KB")
    WORDS.save_pretrained(sharded)
    assert len(list(sharded.glob("*.safetensors"))) > 1
    assert folder_digest(sharded) == policy.digest
    config = sharded / "config.json"
    config.write_text(config.read_text().replace('"transformers_version": "', '"transformers_version": "0.'))
    assert folder_digest(sharded) == policy.digest
    config.write_text(config.read_text().replace('"rms_norm_eps": ', '"rms_norm_eps": 1'))
    assert folder_digest(sharded) != policy.digest


def test_adapters_become_part_of_the_weights(store):
    adapted = open_for_training(loop_world.model(WORDS), Lora(2), seed=0)
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.1)
    ids = torch.tensor([[5, 7, 11]])
    before = adapted(ids).logits.detach()
    policy = store.add(adapted, WORDS)
    np.testing.assert_allclose(store.model(policy)(ids).logits, before, rtol=1e-5, atol=1e-6)
    half = open_for_training(loop_world.model(WORDS, dtype="bfloat16"), Lora(2), seed=0)
    with pytest.raises(StoreError, match="half precision, which would round their sum away"):
        store.add(half, WORDS)


def test_what_is_missing_or_damaged_is_told(store):
    policy = store.add(loop_world.model(WORDS), WORDS)
    other = store.add(loop_world.model(WORDS, seed=1), WORDS)
    file = policy.path / "model.safetensors"
    values = load_file(file)
    name = sorted(values)[0]
    values[name] = values[name].clone()
    values[name].view(-1)[0] += 1.0
    save_file(values, file, metadata={"format": "pt"})
    again = PolicyStore(store.root)
    with pytest.raises(StoreError, match=r"policy [0-9a-f]{12} in .* is damaged \(its hash has changed\)"):
        again.get(policy.digest)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(StoreError, match="is no whole model folder"):
        again.get(policy.digest)
    shutil.rmtree(other.path)
    with pytest.raises(StoreError, match=r"has no policy .*: a checkpoint of the trajectory is missing; restore its"):
        again.get(other.digest)
    with pytest.raises(StoreError, match="has no policy"):
        store.model(other)


def test_a_dropped_policy_can_be_named_but_not_opened(store):
    policy = store.add(loop_world.model(WORDS), WORDS)
    before = store.size()
    store.drop(policy)
    assert store.size() == 0 < before
    again = PolicyStore(store.root)
    assert again.get(policy.digest) == policy
    with pytest.raises(StoreError, match=r"was dropped from .* to save space"):
        again.model(policy)
    assert again.add(loop_world.model(WORDS), WORDS) == policy
    assert again.model(policy) is not None
    other = again.add(loop_world.model(WORDS, seed=1), WORDS)
    assert again.keep_only([other]) > 0.9 * before and again.has(other.digest) and not again.has(policy.digest)


def test_a_policy_that_was_not_written_whole_is_not_there(store):
    left = store.unfinished()
    (left / "model.safetensors").write_bytes(b"half")
    again = PolicyStore(store.root)
    assert list((again.root / "policies").iterdir()) == []


def test_two_models_are_in_memory_at_most(store):
    policies = [store.add(loop_world.model(WORDS, seed=seed), WORDS) for seed in range(3)]
    first = store.model(policies[0])
    assert store.model(policies[0]) is first
    store.model(policies[1]), store.model(policies[0]), store.model(policies[2])
    assert store.model(policies[0]) is first and len(store._models) == 2
    assert not any(value.requires_grad for value in first.parameters()) and not first.training
    assert store.load(policies[0]) is not first


def test_outcomes_are_remembered_by_what_they_depend_on(store):
    key = key_of(a=1, b=[0.1, "x"])
    assert key == key_of(b=[0.1, "x"], a=1) != key_of(a=2, b=[0.1, "x"])
    assert store.recall("fits", key) is None
    store.remember("fits", key, {"loss": 0.1 + 0.2})
    assert store.recall("fits", key) == {"loss": 0.1 + 0.2}
    (store.root / "fits" / f"{key}.json").write_text("{")
    with pytest.raises(StoreError, match="is damaged"):
        store.recall("fits", key)


def test_a_policy_of_another_kind_is_refused(tmp_path):
    world = loop_world.backend(tmp_path)
    assert world.load(world.dump(world.base)) == world.base == world.load()
    assert world.dump(world.base)["sha256"].tobytes().hex() == world.base.digest
    with pytest.raises(LoopError, match="known by 'sha256', 32 bytes"):
        world.load({"theta": np.zeros((1, 3))})
    with pytest.raises(StoreError, match="a checkpoint of the trajectory is missing"):
        world.load({"sha256": np.zeros(32, dtype=np.uint8)})
