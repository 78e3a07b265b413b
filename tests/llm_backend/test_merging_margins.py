"""Margins of merged models: those of the merged folder; slopes: derivatives, on four architectures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from llm_backend.batching import Collator
from llm_backend.log_probs import response_log_probs
from llm_backend.merging import MergedMargins, MergeError, merge_folders, merged_margins
from llm_backend.models import load_model, new_model, tiny_config

SHARES = np.array([0.2, 0.5, 0.3])


def rows(n: int = 12) -> list[dict[str, list[int]]]:
    rng = np.random.default_rng(0)

    def ids(most: int) -> list[int]:
        return rng.integers(1, 40, size=rng.integers(1, most)).tolist()

    return [{"prompt_ids": ids(6), "chosen_ids": ids(5), "rejected_ids": ids(7)} for _ in range(n)]


def models(architecture: str = "llama", *, spread: float = 1.0, dtype: str = "float64") -> list[torch.nn.Module]:
    """A trajectory: one model and two changed by ``spread`` times a random direction."""
    config = tiny_config(architecture, vocab_size=40, width=16, layers=2, heads=2)
    first = new_model(config, seed=0, dtype=dtype)
    found = [first]
    for seed in (1, 2):
        other, step = new_model(config, seed=0, dtype=dtype), new_model(config, seed=seed, dtype=dtype)
        with torch.no_grad():
            for value, change in zip(other.parameters(), step.parameters(), strict=True):
                value.add_(change, alpha=spread)
        found.append(other)
    return found


def direct(model: torch.nn.Module, pairs: list[dict[str, list[int]]]) -> np.ndarray:
    with torch.no_grad():
        log_probs = response_log_probs(model, Collator(shared=False)(pairs)).log_probs
    return (log_probs["chosen"] - log_probs["rejected"]).double().numpy()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3", "mistral"])
def test_slopes_are_derivatives(architecture: str) -> None:
    margins = MergedMargins(models(architecture), rows(6), dtype="float64", tokens_per_batch=40)
    values, slopes = margins(SHARES)
    np.testing.assert_allclose(margins.values(SHARES), values, rtol=1e-12)
    # transformers computes RMS norms in float32, so differences need long steps: errors of h^4 and of 1e-7 / h
    h, close = (1e-3, 1e-8) if architecture == "gpt2" else (1e-2, 2e-4)
    for t in range(3):
        at = {k: margins.values(SHARES + k * h * np.eye(3)[t]) for k in (-2, -1, 1, 2)}
        difference = (8.0 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12.0 * h)
        np.testing.assert_allclose(slopes[:, t], difference, rtol=close, atol=close)
    assert np.abs(slopes).max() > 0.1


def test_margins_are_those_of_the_merged_folder(tmp_path: Path) -> None:
    trajectory, pairs = models("gpt2"), rows()
    folders = [tmp_path / str(t) for t in range(3)]
    for model, folder in zip(trajectory, folders, strict=True):
        model.save_pretrained(folder)
    merge_folders(folders, SHARES.tolist(), tmp_path / "out")
    wanted = direct(load_model(tmp_path / "out", dtype="float64"), pairs)
    found, slopes = merged_margins(folders, pairs, SHARES, dtype="float64")
    np.testing.assert_allclose(found, wanted, rtol=1e-11, atol=1e-12)
    in_memory = merged_margins(trajectory, pairs, SHARES, dtype="float64", tokens_per_batch=30)
    np.testing.assert_allclose(in_memory[0], found, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(in_memory[1], slopes, rtol=1e-10, atol=1e-11)
    one_hot, _ = merged_margins(folders, pairs, [0.0, 1.0, 0.0], dtype="float64")
    np.testing.assert_allclose(one_hot, direct(trajectory[1], pairs), rtol=1e-11, atol=1e-12)


def test_slopes_along_small_steps_keep_their_accuracy_in_float32() -> None:
    """Steps of 1e-5: differences of slopes are 1e-5 of the slopes, which float32 along theta_t itself would lose."""
    near = models(spread=1e-5, dtype="float64")
    _, exact = MergedMargins(near, rows(), dtype="float64")(SHARES)
    single = [new_model(near[0].config, seed=0) for _ in near]
    for one, other in zip(single, near, strict=True):
        one.load_state_dict(other.state_dict())
    _, found = MergedMargins(single, rows())(SHARES)
    wanted = exact[:, 1:] - exact[:, :1]
    # the float32 models themselves are rounded: 1e-7 of 0.02 against steps of 2e-7, so some percent
    np.testing.assert_allclose(found[:, 1:] - found[:, :1], wanted, rtol=0.1, atol=0.05 * np.abs(wanted).max())


def test_models_are_left_as_they_were() -> None:
    trajectory = models()
    before = [[value.clone() for value in model.parameters()] for model in trajectory]
    merged_margins(trajectory, rows(3), SHARES, dtype="float64")
    for model, values in zip(trajectory, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), values, strict=True))


def test_refusals() -> None:
    trajectory = models()
    with pytest.raises(MergeError, match="merged margins need at least one model, got none"):
        MergedMargins([], rows())
    with pytest.raises(MergeError, match="there are no pairs to learn the weights of a merge from"):
        MergedMargins(trajectory, [])
    with pytest.raises(MergeError, match="computed in float32 or float64, not in bfloat16"):
        MergedMargins(trajectory, rows(), dtype="bfloat16")
    margins = MergedMargins(trajectory, rows(2), dtype="float64")
    for bad in ([0.5, 0.5], [np.nan, 0.5, 0.5]):
        with pytest.raises(MergeError, match="3 models need as many finite weights, got"):
            margins(bad)
    wide = new_model(tiny_config(vocab_size=40, width=32, layers=2, heads=2), seed=0)
    with pytest.raises(MergeError, match=r"is \(40, 32\) in model 2 but \(40, 16\) in model 1"):
        MergedMargins([trajectory[0], wide], rows(2), dtype="float64")([0.5, 0.5])
    deep = new_model(tiny_config(vocab_size=40, width=16, layers=3, heads=2), seed=0)
    with pytest.raises(MergeError, match="is a parameter of only one of models 1 and 2 of the merge"):
        MergedMargins([trajectory[0], deep], rows(2), dtype="float64")([0.5, 0.5])
    with torch.no_grad():
        trajectory[1].model.norm.weight.fill_(float("nan"))
    with pytest.raises(MergeError, match=r"margins are not finite in rows \[0, 1\]; a model is broken"):
        MergedMargins(trajectory, rows(2), dtype="float64")(SHARES)
