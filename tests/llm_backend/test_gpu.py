"""What a GPU must give: the numbers of the CPU, in training, resuming, AuxDPO, generation and evaluation.

Each test runs on the CPU too, so that its logic is tested everywhere; ``pytest -m gpu`` runs them on a GPU.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from llm_backend.auxiliary import AuxiliaryOptions
from llm_backend.batching import Collator
from llm_backend.evaluation.encoding import TokenSet
from llm_backend.evaluation.kl import token_kl
from llm_backend.evaluation.scoring import score_sets
from llm_backend.generation.protocol import Sampling
from llm_backend.generation.writing import write_tokens
from llm_backend.lm_auxiliary import LMAuxiliary
from llm_backend.log_probs import best_collator, response_log_probs
from llm_backend.models import Lora, new_model, open_for_training, tiny_config
from llm_backend.reference import Reference
from llm_backend.response_trainer import training_arguments
from llm_backend.trainer import PreferenceTrainer
from objectives import make_objective

VOCABULARY = 48
PAIR = ("chosen", "rejected")
MODES: dict[str, AuxiliaryOptions] = {
    "dual": AuxiliaryOptions(dual_every=2, every=1),
    "batch_penalty": AuxiliaryOptions(mode="batch_penalty"),
    "cross_batch": AuxiliaryOptions(mode="cross_batch"),
    "official_compat": AuxiliaryOptions.official(0.1),
    "exact": AuxiliaryOptions(mode="exact"),
}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Where the tested side computes; the other side is always the CPU."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    return str(request.param)


def policy(device: str, dtype: str = "float32", **sizes: int) -> Any:
    """Large weights, so that attention and what can be seen matter."""
    config = tiny_config("llama", vocab_size=VOCABULARY, **{"width": 32, "layers": 2, "heads": 4, **sizes})
    model: Any = new_model(config, seed=0, dtype=dtype)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim == 2:
                value.mul_(4.0)
    return model.to(device)


def rows(n: int = 12) -> list[dict[str, Any]]:
    """Pairs of unlike lengths; each prompt comes twice."""
    rng = np.random.default_rng(0)
    found = []
    for i in range(n):
        prompt = np.random.default_rng([1, i // 2]).integers(VOCABULARY, size=3 + 5 * (i // 2) % 17).tolist()
        ids = {f"{side}_ids": rng.integers(VOCABULARY, size=rng.integers(2, 9)).tolist() for side in PAIR}
        found.append({"row": i, "prompt_ids": prompt, **ids})
    return found


def arguments(folder: Any, device: str, **options: Any) -> Any:
    same = {
        "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "max_steps": 4, "learning_rate": 1e-3,
        "lr_scheduler_type": "constant", "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True, "seed": 0,
        "use_cpu": device == "cpu",
    }  # fmt: skip
    return training_arguments(folder, **(same | options))


def trained(folder: Any, device: str, mode: str | None = None, *, resume: Any = None, **options: Any) -> Any:
    """A trainer after its steps, with delta where a mode is named; the model is on ``start`` before."""
    model = policy(options.pop("start", device), options.pop("dtype", "float32"))
    if mode == "exact":
        model = open_for_training(model, Lora(rank=1, targets=("q_proj",)), seed=1).to(model.device)
    data = rows()
    reference = Reference.initial(model).log_probs(data)
    auxiliary = None if mode is None else LMAuxiliary(model, data, MODES[mode])
    objective = make_objective("dpo" if mode is None else "auxdpo", beta=0.1)
    trainer = PreferenceTrainer(
        model, objective, arguments(folder, device, **options), data, reference=reference, auxiliary=auxiliary,
        eval_rows=data[:5], eval_reference=Reference.initial(model).log_probs(data[:5]),
    )  # fmt: skip
    assert trainer.args.device.type == device
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(trainer: Any) -> torch.Tensor:
    return torch.cat([value.detach().cpu().float().flatten() for value in trainer.model.parameters()])


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("layout", ["separate", "shared", "best"])
def test_log_probs_are_those_of_the_cpu(device: str, layout: str) -> None:
    """Against float64 on the CPU, one response a line."""
    with torch.no_grad():
        exact = response_log_probs(policy("cpu", "float64"), Collator(shared=False)(rows())).log_probs
        model = policy(device)
        collate = best_collator(model, PAIR) if layout == "best" else Collator(shared=layout == "shared")
        found = response_log_probs(model, {name: value.to(device) for name, value in collate(rows()).items()}).log_probs
    for side in PAIR:
        assert found[side].device.type == device and found[side].dtype == torch.float32
        torch.testing.assert_close(found[side].cpu().double(), exact[side], rtol=1e-4, atol=1e-3)


def test_steps_of_dpo_are_those_of_the_cpu(device: str, tmp_path: Any) -> None:
    """Plain gradient descent, so that rounding is not made large; the CPU has each step in one batch."""
    how = {"optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 1e-2}
    mine = trained(tmp_path / "a", device, **how)
    same = {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 1}
    cpu = trained(tmp_path / "b", "cpu", **how, **same)
    assert losses(mine)[0] == pytest.approx(np.log(2.0), abs=1e-5) and losses(mine)[-1] < 0.69
    np.testing.assert_allclose(losses(mine), losses(cpu), rtol=0, atol=1e-4)
    start = torch.cat([value.detach().flatten() for value in policy("cpu").parameters()])
    assert (weights(cpu) - weights(mine)).abs().max() < 1e-2 * (weights(cpu) - start).abs().max()
    assert mine.evaluate()["eval_loss"] == pytest.approx(cpu.evaluate()["eval_loss"], abs=1e-4)


@pytest.mark.filterwarnings("ignore:.*jit.script:DeprecationWarning")  # torch's own, in torch.func.jvp
@pytest.mark.parametrize("mode", MODES)
def test_bfloat16_trains_in_every_mode(device: str, mode: str, tmp_path: Any) -> None:
    trainer = trained(tmp_path, device, mode, dtype="bfloat16")
    assert trainer.model.dtype == torch.bfloat16
    assert losses(trainer)[0] == pytest.approx(np.log(2.0), abs=5e-2) and np.isfinite(losses(trainer)).all()
    auxiliary = trainer.auxiliary.auxiliary
    if mode == "exact" and auxiliary.raw.numel() == 0:  # more scores than variables: the constraint leaves nothing
        return
    start = 3e-4 if mode == "official_compat" else 0.0  # beta 1e-3 times the largest of 24 normal draws
    assert float(auxiliary.delta.abs().max()) > 2.0 * start and bool(torch.isfinite(auxiliary.delta).all())
    if mode == "dual":
        assert all(value.device.type == device for value in auxiliary.residual.values())
        assert 0.0 < auxiliary.residual_norm < float("inf")


@pytest.mark.filterwarnings("ignore:.*jit.script:DeprecationWarning")
@pytest.mark.parametrize("mode", [None, "dual"])
def test_a_resumed_run_ends_where_the_whole_one_does(device: str, mode: str | None, tmp_path: Any) -> None:
    saved = {"save_strategy": "steps", "save_steps": 2}
    whole = trained(tmp_path / "a", device, mode, **saved)
    resumed = trained(tmp_path / "b", device, mode, resume=tmp_path / "a" / "checkpoint-2", **saved)
    tolerance = 0.0 if device == "cpu" else 1e-5  # sums on a GPU come in any order
    torch.testing.assert_close(weights(resumed), weights(whole), rtol=0.0, atol=tolerance)
    if mode is not None:
        both = [each.auxiliary.auxiliary for each in (resumed, whole)]
        torch.testing.assert_close(both[0].delta, both[1].delta, rtol=0.0, atol=10 * tolerance)
        assert both[0].residual_norm == pytest.approx(both[1].residual_norm, rel=1e-12 if device == "cpu" else 1e-3)


@pytest.mark.filterwarnings("ignore:.*jit.script:DeprecationWarning")
def test_the_trainer_takes_model_and_delta_along(device: str, tmp_path: Any) -> None:
    """Made on the CPU, before the trainer moves the model."""
    trainer = trained(tmp_path, device, "dual", start="cpu")
    assert trainer.model.device.type == device and trainer.auxiliary.auxiliary.residual_norm > 0.0
    assert trainer.collate.packed == (device == "cpu")


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_generation_is_that_of_the_cpu(device: str, temperature: float) -> None:
    """Also at a temperature: the draws are made of seed and prompt. Rows end at different times."""
    drawn = {"candidates": 2, "top_p": 0.95} if temperature else {}
    sampling = Sampling(temperature=temperature, max_new_tokens=12, batch_size=4, **drawn)
    prompts = [row["prompt_ids"] for row in rows(6)]
    both = [
        write_tokens(policy(where), prompts, range(6), sampling, seed=3, ends=frozenset(range(0, VOCABULARY, 9)))
        for where in (device, "cpu")
    ]
    assert both[0] == both[1]
    assert len({len(tokens) for tokens in itertools.chain(*both[0])}) > 1


def test_evaluation_is_that_of_the_cpu(device: str) -> None:
    sets = [
        TokenSet(i, row["prompt_ids"], [row[f"{side}_ids"] for side in PAIR], (0,), "all", str(i), str(i))
        for i, row in enumerate(rows())
    ]
    scores = [score_sets(policy(where), sets).log_probs for where in (device, "cpu")]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4, atol=1e-4)
    other = policy("cpu")
    with torch.no_grad():
        other.model.embed_tokens.weight.mul_(1.1)
    kls = [token_kl(policy(where), other.to(where), sets) for where in (device, "cpu")]
    np.testing.assert_allclose(kls[0], kls[1], rtol=1e-3, atol=1e-4)
    assert kls[1].min() > 0
