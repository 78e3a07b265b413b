"""AuxDPO in a run: its variables made from the recipe, what they can reach told before training, what came out."""

from __future__ import annotations

from typing import Any

from llm_backend.auxiliary import AuxiliaryOptions
from llm_backend.lm_auxiliary import LMAuxiliary
from llm_backend.reference import ReferenceLogProbs
from objectives import Objective
from prefgeo.language.auxiliary_spec import OFFICIAL_PENALTY, PENALTY, AuxiliarySpec
from prefgeo.language.folder import LanguageFolder
from prefgeo.language.recipe import LanguageRecipe
from prefgeo.language.stages import steps_per_epoch
from prefgeo.language.tokens import Rows
from prefgeo.run_folder import MANIFEST

NOTE = "auxiliary"


def prepare_auxiliary(
    recipe: LanguageRecipe, objective: Objective, policy: Any, rows: Rows, reference: ReferenceLogProbs | None,
    folder: LanguageFolder, *, pad_id: int,
) -> LMAuxiliary | None:  # fmt: skip
    """The variables of the training rows, with ``policy`` as it is before training; None without the section.

    Their dimensions are printed and kept in the manifest; a run that continues does not count them again.
    Raises: AuxiliaryError.
    """
    spec = recipe.auxiliary
    if spec is None or reference is None:
        return None
    # differences are taken in float32, slow where bfloat16 is asked for; forward mode does not go with checkpointing
    narrow = recipe.training.precision == "bfloat16" and not recipe.training.gradient_checkpointing
    product = spec.product or ("forward" if narrow else None)
    auxiliary = LMAuxiliary(
        policy, rows, auxiliary_options(spec, objective, steps_per_epoch(recipe.training, len(rows))), tied=spec.tied,
        reference=reference.columns if spec.has_weights else None, product=product, pad_id=pad_id, seed=recipe.seed,
    )  # fmt: skip
    manifest, every = folder.read_json(MANIFEST), auxiliary.auxiliary.turns.period
    if NOTE not in manifest and every > 1 and not folder.follows:
        print(f"AuxDPO: prompts take turns, the delta of each moves once in {every} visits", flush=True)
    if NOTE not in manifest and spec.dimensions != "skip" and not folder.follows:
        report = auxiliary.report(spec.dimensions)
        print(report, flush=True)
        folder.write_json(MANIFEST, folder.read_json(MANIFEST) | {NOTE: report.plain()})
    return auxiliary


def auxiliary_options(spec: AuxiliarySpec, objective: Objective, epoch: int) -> AuxiliaryOptions:
    """The section in the terms of ``llm_backend``; ``epoch`` steps make an epoch."""
    options: dict[str, Any] = {
        "mode": spec.mode, "ridge": spec.ridge, "learning_rate": spec.learning_rate, "optimiser": spec.optimiser,
        "momentum": spec.momentum, "every": spec.every, "gauge": spec.gauge,
    }  # fmt: skip
    if spec.mode == "official_compat":
        options |= {"cap": spec.cap or 1.0, "beta": getattr(objective, "beta", None)}
        options |= {"anti_ridge": 1.0 if spec.anti_ridge is None else spec.anti_ridge}
    if spec.mode == "dual":
        options |= {"dual_every": epoch if spec.dual_every is None else spec.dual_every}
    usual = OFFICIAL_PENALTY if spec.mode == "official_compat" else PENALTY
    return AuxiliaryOptions(**options, penalty=usual if spec.penalty is None else spec.penalty)


def auxiliary_record(auxiliary: LMAuxiliary | None, folder: LanguageFolder) -> dict[str, Any]:
    """For result.json: the dimensions before training, delta and its constraint after it."""
    if auxiliary is None:
        return {}
    return {"auxiliary": folder.read_json(MANIFEST).get(NOTE, {}) | auxiliary.metrics()}
