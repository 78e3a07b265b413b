"""Loops on language models that are killed: the same result.json to the byte, and no finished stage done again."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("transformers")

from llm_backend.loops import CandidateSource, LanguageBackend, PolicyStore, candidate_source
from llm_backend.loops.fitting import Fit
from prefgeo.language.loop_measures import LoopMeasures
from prefgeo.language.run import run_language_recipe
from prefgeo.run_monitor import RunMonitor

TPMM: dict[str, Any] = {
    "name": "killed",
    "model": {"name": "tiny", "sizes": {"architecture": "gpt2", "width": 16, "layers": 1, "heads": 2, "context": 64}},
    "tokenizer": {"name": "embedded", "vocab_size": 300},
    "data": {
        "format": "world", "world": {"name": "e3", "options": {"grammar": {"max_length": 10}}},
        "supervised": 40, "rows": 20, "held_out": 6, "flip": 0.2,
    },
    "sft": {"learning_rate": 0.01, "steps": 6, "batch_size": 8, "log_every": 2},
    "objective": {"name": "dpo"},
    "training": {"learning_rate": 0.003, "epochs": 1, "batch_size": 4, "log_every": 1},
    "algorithm": {"name": "tpmm", "options": {"rounds": 2, "budget_divisor": 2}},
    "prompts": {"name": "world", "per_round": 12},
    "generation": {"candidates": 3, "max_new_tokens": 8},
    "pairing": {"drop_cut_off": False, "drop_empty": False},
    "evaluate": {"generations": 4, "max_new_tokens": 8},
}  # fmt: skip
WORKER = """
import sys
from pathlib import Path
from prefgeo.language.run import run_language_recipe
print("ready", flush=True)
run_language_recipe(Path(sys.argv[1]), Path(sys.argv[2]), resume=Path(sys.argv[2]).exists(), checkpoint_seconds=0.0)
"""
STAGES = {  # what a loop does -> (owner, function)
    "generation": (CandidateSource, "_generate"),
    "ranking": (candidate_source, "_rank"),
    "training": (Fit, "_train"),
    "step": (RunMonitor, "step"),
    "weights": (LanguageBackend, "merged_margins"),
    "merging": (LanguageBackend, "_merged"),
    "evaluation": (LoopMeasures, "__call__"),
}


class KilledError(BaseException):
    """Stands in for a signal: nothing catches it."""


class Calls:
    """Counts what is done, and ends everything at the ``count``-th time of ``place``."""

    def __init__(self, patch: pytest.MonkeyPatch, place: str = "", count: int = 0) -> None:
        self.made: Counter[str] = Counter()
        for name, (owner, function) in STAGES.items():
            self._watch(patch, name, owner, function, count if name == place else 0)

    def _watch(self, patch: pytest.MonkeyPatch, name: str, owner: Any, function: str, last: int) -> None:
        whole = getattr(owner, function)

        def watched(*given: Any, **named: Any) -> Any:
            if self.made[name] + 1 == last:
                raise KilledError
            found = whole(*given, **named)
            self.made[name] += 1  # only what was done to its end
            return found

        patch.setattr(owner, function, watched)


def written(folder: Path, **sections: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**TPMM, **sections}, sort_keys=False), encoding="utf-8")
    return path


def final(out: Path) -> dict[str, bytes]:
    names = ("result.json", "metrics.jsonl", "curve.png", "model/model.safetensors")
    return {name: (out / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes], Counter[str]]:
    """A run that nobody killed: its recipe, what it ended with, and how often it did what."""
    home = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        calls = Calls(patch)
        run_language_recipe(written(home), home / "out", checkpoint_seconds=0.0)
    assert all(calls.made[place] >= 1 for place in STAGES)
    return home / "recipe.yaml", final(home / "out"), calls.made


SLOW = [("generation", 2), ("training", 1), ("evaluation", 2)]


@pytest.mark.parametrize(
    ("place", "count"),
    [("ranking", 2), ("step", 4), ("weights", 2), ("merging", 1)]
    + [pytest.param(*each, marks=pytest.mark.slow) for each in SLOW],
)
def test_a_loop_killed_in_any_stage_ends_with_the_same_bytes(
    whole: tuple[Path, dict[str, bytes], Counter[str]], place: str, count: int, tmp_path: Path
) -> None:
    recipe, end, usual = whole
    with pytest.MonkeyPatch.context() as patch:
        before = Calls(patch, place, count)
        with pytest.raises(KilledError):
            run_language_recipe(recipe, tmp_path / "out", checkpoint_seconds=0.0)
    with pytest.MonkeyPatch.context() as patch:
        after = Calls(patch)
        run_language_recipe(recipe, tmp_path / "out", resume=True, checkpoint_seconds=0.0)
    assert final(tmp_path / "out") == end
    for name in ("generation", "ranking", "training", "merging"):
        assert before.made[name] + after.made[name] == usual[name], name  # what was finished is not done again


def test_a_process_killed_at_a_random_time_is_continued_by_another(
    whole: tuple[Path, dict[str, bytes], Counter[str]], tmp_path: Path
) -> None:
    recipe, end, _ = whole
    assert killed(recipe, tmp_path / "out", random.Random(5).uniform(0.5, 4.0))
    run_language_recipe(recipe, tmp_path / "out", resume=True, checkpoint_seconds=0.0)
    assert final(tmp_path / "out") == end


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_process_killed_again_and_again_ends_with_the_same_bytes(
    whole: tuple[Path, dict[str, bytes], Counter[str]], tmp_path: Path, seed: int
) -> None:
    recipe, end, _ = whole
    rng = random.Random(seed)
    for _ in range(20):
        if not killed(recipe, tmp_path / "out", rng.uniform(0.2, 2.5)):
            break
    run_language_recipe(recipe, tmp_path / "out", resume=True, checkpoint_seconds=0.0)
    assert final(tmp_path / "out") == end


THREE: dict[str, dict[str, Any]] = {
    "tpmm": {"rounds": 3, "budget_divisor": 2},
    "iterative": {"rounds": 3, "reference": "ema"},
}


@pytest.mark.parametrize(("name", "place", "count"), [("tpmm", "training", 3), ("iterative", "step", 7)])
def test_needed_policies_are_enough_for_the_same_bytes_killed_or_not(
    name: str, place: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Base, three rounds and two merges; before the last round what made the last merge goes."""
    algorithm = {"name": name, "options": THREE[name]}
    run_language_recipe(written(tmp_path, algorithm=algorithm), tmp_path / "all")
    everything = len(list((tmp_path / "all" / "store" / "policies").iterdir()))
    there: list[int] = []
    adopt = PolicyStore.adopt

    def counted(self: PolicyStore, folder: Path) -> Any:
        found = adopt(self, folder)
        there.append(len(list((self.root / "policies").iterdir())))
        return found

    monkeypatch.setattr(PolicyStore, "adopt", counted)
    recipe = written(tmp_path, algorithm=algorithm, keep_policies="needed")
    run_language_recipe(recipe, tmp_path / "needed")
    assert (everything, there) == (6, [1, 2, 3, 4, 5, 4])
    with pytest.MonkeyPatch.context() as patch:
        Calls(patch, place, count)
        with pytest.raises(KilledError):
            run_language_recipe(recipe, tmp_path / "killed", checkpoint_seconds=0.0)
    run_language_recipe(recipe, tmp_path / "killed", resume=True, checkpoint_seconds=0.0)
    for out in ("needed", "killed"):
        assert final(tmp_path / out) == final(tmp_path / "all")
        assert not (tmp_path / out / "store" / "policies").exists()


def killed(recipe: Path, out: Path, seconds: float) -> bool:
    """Run it in a process that gets SIGKILL so many seconds after its imports; whether it was still at work."""
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, str(recipe), str(out)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        time.sleep(seconds)
        process.kill()
        return process.wait() != 0
