"""A run: one recipe on one backend, in one folder, that can be killed at any time and continued."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from llm_backend.versions import versions
from prefgeo import __version__
from prefgeo.algorithms.data_source import DataSource
from prefgeo.algorithms.outcome import LoopOutcome, Round
from prefgeo.algorithms.single_round import ROLES, Outcome, single_round
from prefgeo.backend import Backend
from prefgeo.errors import UsageError
from prefgeo.preparation import Prepared, digest, make_backend, prepare
from prefgeo.recipe_changes import check_unchanged
from prefgeo.recipes import load_recipe
from prefgeo.run_folder import CHECKPOINT, CONFIG, MANIFEST, RESULT, THETA, RunFolder, arrays_digest
from prefgeo.run_journal import RunJournal
from prefgeo.run_monitor import RunMonitor
from prefgeo.statistics import Estimate

PACKAGES = ("numpy", "scipy", "torch", "safetensors", "array-api-compat")


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, and its result as result.json holds it. ``was_finished``: nothing had to be done."""

    folder: Path
    result: Mapping[str, Any]
    was_finished: bool

    def estimates(self, part: str = "metrics") -> dict[str, Estimate]:
        """Mean and interval over the seeds of each metric; ``part`` "base" is the policy that training began from."""
        return {name: Estimate.of(entry["values"]) for name, entry in self.result[part].items()}


def run_recipe(
    path: Path,
    backend: str,
    out: Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    checkpoint_seconds: float = 10.0,
) -> Run:
    """Run a recipe, all seeds at once, and write its folder.

    Raises: ``UsageError`` for a fault in the recipe, a folder that exists (without ``resume``), or one that belongs to
    another recipe or backend; errors of the packages below for what cannot be trained.
    """
    recipe, fault = load_recipe(path)
    prepared = prepare(recipe, fault, path.parent)
    existed = out.exists()
    folder = RunFolder.claim(out, resume=resume)
    try:
        return _run(prepared, backend, folder, device, checkpoint_seconds)
    except ValueError:
        if not existed and not folder.has_progress:
            folder.discard()  # so that the repaired recipe can use the name
        raise
    finally:
        folder.release()


def _run(prepared: Prepared, backend_name: str, folder: RunFolder, device: str, seconds: float) -> Run:
    config = {**prepared.config, "backend": backend_name}
    if folder.has(MANIFEST):
        _check_same(folder, config, device)
    if folder.has(RESULT):
        return Run(folder.path, folder.read_json(RESULT), True)
    seeds = list(prepared.recipe.seeds)
    backend = make_backend(backend_name, device, prepared.world.build(seeds))
    reference = arrays_digest(backend.dump(backend.load()))
    if folder.has(MANIFEST):
        _check_reference(folder, reference)
    else:
        folder.write_json(CONFIG, config)
        roles = ROLES if prepared.algorithm is None else {"rounds": prepared.algorithm.roles()}
        folder.write_json(MANIFEST, manifest(config, device, reference, roles))
    what = f"{prepared.recipe.name} ({backend_name})"
    outcome = _outcome(prepared, backend, folder, reference, seconds, what)
    folder.write_arrays(THETA, backend.dump(outcome.policy), {"reference": reference, "config": digest(config)})
    result = {
        "seeds": seeds,
        "metrics": {name: summary(values) for name, values in outcome.metrics.items()},
        "base": {name: summary(values) for name, values in outcome.base_metrics.items()},
    }
    if isinstance(outcome, LoopOutcome):
        result["rounds"] = [_round(each) for each in outcome.rounds]
    folder.write_json(RESULT, result)
    (folder.path / CHECKPOINT).unlink(missing_ok=True)
    return Run(folder.path, result, False)


def _outcome(
    prepared: Prepared, backend: Backend[Any, Any], folder: RunFolder, reference: str, seconds: float, what: str
) -> Outcome[Any] | LoopOutcome[Any]:
    """Train: the algorithm of the recipe, or one round."""
    seeds, make = list(prepared.recipe.seeds), prepared.recipe.objective.make
    flip, plan = prepared.recipe.data.flip, prepared.plan()
    if prepared.algorithm is not None:
        journal = RunJournal(folder, seeds, reference=reference, seconds=seconds, what=what)
        try:
            return prepared.algorithm.run(backend, make, DataSource(prepared.kind, flip), plan, journal)
        finally:
            journal.close()
    with RunMonitor(folder, seeds, reference=reference, seconds=seconds, what=what) as monitor:
        outcome = single_round(backend, make(), kind=prepared.kind, flip=flip, plan=plan, monitor=monitor)
        if plan.optimiser == "exact":  # there were no steps to log
            monitor.log(0, outcome.base_metrics)
            monitor.log(1, outcome.metrics)
        return outcome


def _round(finished: Round[Any]) -> dict[str, Any]:
    """A round for result.json: who was what, the metrics, and the shares of a merge, a row for each seed."""
    found = {"roles": dict(finished.roles), "metrics": {name: summary(v) for name, v in finished.metrics.items()}}
    return found if finished.shares is None else found | {"shares": np.asarray(finished.shares).tolist()}


def summary(values: Any) -> dict[str, Any]:
    """Mean, deviation, 95% t interval, and the values, one for each seed."""
    plain = [float(value) for value in values]
    return {**asdict(Estimate.of(plain)), "values": plain}


def manifest(
    config: Mapping[str, Any], device: str, reference: str, roles: Mapping[str, Any] = ROLES
) -> dict[str, Any]:
    """What made a run: backend, seeds, versions, input hashes, and who was policy, start and reference."""
    return {
        "config_sha256": digest(config),
        "backend": config["backend"],
        "device": device,
        "seeds": config["seeds"],
        "inputs": config["world"]["inputs"],
        "roles": roles,
        "reference_sha256": reference,
        "versions": run_versions(),
        "git_revision": git_revision(),
    }


@cache
def git_revision() -> str | None:
    """The commit of the running source, as it was when this process first asked: a commit that lands later is not what
    was imported. With ``+changes`` where files differ from it; None if git does not track it."""
    return revision_of(Path(__file__).resolve())


def revision_of(file: Path) -> str | None:
    """The commit of the repository that tracks the file, as it is now; as ``git_revision``."""
    questions = (
        ("ls-files", "--error-unmatch", file.name),  # an installed copy may lie inside another repository
        ("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"),
    )
    told = ""
    for question in questions:
        command = ["git", "--no-optional-locks", "-C", str(file.parent), *question]
        try:
            told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None
    return told


def run_versions() -> dict[str, str]:
    """The versions that decide what a run computes."""
    return {"prefgeo": __version__, "python": platform.python_version(), **versions(PACKAGES)}


def _check_same(folder: RunFolder, config: Mapping[str, Any], device: str) -> None:
    stored, before = folder.read_json(MANIFEST), folder.read_json(CONFIG)
    if stored.get("config_sha256") != digest(before):
        raise UsageError(f"{folder.path / CONFIG} was changed after the run began; start again with another --out")
    check_unchanged(folder.path, before, config)
    if stored.get("device") != device:
        raise UsageError(f"{folder.path} was begun with --device {stored.get('device')}; continue it with that")


def _check_reference(folder: RunFolder, reference: str) -> None:
    if folder.read_json(MANIFEST).get("reference_sha256") != reference:
        raise UsageError(
            f"{folder.path} cannot be continued here: the reference policy is another one than when it was begun "
            "(other package versions?); start again with another --out"
        )
