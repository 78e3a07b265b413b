"""A run of a language-model recipe: evaluate, SFT, evaluate, train on preferences, evaluate; killed and continued."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from llm_backend.generation.errors import GenerationError
from llm_backend.lm_fields import needs_live_reference
from llm_backend.loops.store import POLICIES
from llm_backend.models import trainable_count
from llm_backend.progress import shown_by
from llm_backend.reference import weights_hash
from llm_backend.versions import versions
from prefgeo.errors import UsageError
from prefgeo.language.auxiliary_stage import auxiliary_record, prepare_auxiliary
from prefgeo.language.cells import plain_recipe
from prefgeo.language.curve import draw_curve
from prefgeo.language.data import TRAIN, LanguageTexts, load_texts
from prefgeo.language.evaluation import evaluate_model
from prefgeo.language.folder import CHECKPOINTS, CURVE, PREFERENCE, SFT, START, STORE, LanguageFolder
from prefgeo.language.launch import FollowedFolder, join_launch
from prefgeo.language.loop_checks import loop_settings
from prefgeo.language.loop_curve import draw_loop_curve
from prefgeo.language.loop_recorded import with_recorded
from prefgeo.language.model_names import at, check_names, tokenizer_place, with_local_names
from prefgeo.language.models import check_parts, live_reference, make_reference, opened, start_model, stored_model
from prefgeo.language.recipe import LanguageData, LanguageRecipe, load_language_recipe
from prefgeo.language.shared_start import adopt_start
from prefgeo.language.stages import run_preference, run_supervised, training_reference
from prefgeo.language.tokens import TokenRows, recipe_tokenizer, token_rows
from prefgeo.preparation import digest
from prefgeo.progress import shown
from prefgeo.recipe_changes import check_unchanged
from prefgeo.run_folder import CONFIG, MANIFEST, RESULT
from prefgeo.runs import git_revision, run_versions
from prefgeo.yaml_reading import Fault, Path_

LOOP = "loop"
PACKAGES = ("transformers", "accelerate", "peft", "tokenizers", "datasets")


@dataclass(frozen=True)
class LanguageRun:
    """A finished run: its folder, and its result as result.json holds it. ``was_finished``: nothing had to be done."""

    folder: Path
    result: Mapping[str, Any]
    was_finished: bool


def run_language_recipe(
    path: Path, out: Path, *, resume: bool = False, device: str = "cpu", checkpoint_seconds: float = 10.0
) -> LanguageRun:
    """Run a language-model recipe and write its folder.

    Raises: ``UsageError`` for a fault in the recipe, a folder that exists (without ``resume``) or belongs to another
    recipe; ``DataError``, ``ModelError`` and others of the torch backend for what cannot be loaded or trained.
    """
    recipe, fault = load_language_recipe(path)
    check_device(device)
    return run_checked(recipe, fault, path.parent, out, resume=resume, device=device, seconds=checkpoint_seconds)


def check_device(device: str) -> None:
    """Raises ``UsageError`` for a device that there is not."""
    if device not in ("cpu", "cuda"):
        raise UsageError(f"--device {device}: say cpu or cuda; which GPU is chosen by CUDA_VISIBLE_DEVICES")
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no GPU here; say cpu")


def run_checked(
    recipe: LanguageRecipe, fault: Fault, home: Path, out: Path, *, resume: bool, device: str, seconds: float,
    start_from: Path | None = None,
) -> LanguageRun:  # fmt: skip
    """As ``run_language_recipe``, for a recipe that was read; file names in it start at ``home``.

    ``start_from`` is the folder of another run, whose stages before preference training are taken over where this run
    would compute the same.
    """
    existed = out.exists()
    folder = _folder(recipe, out, resume, device, fault)
    try:
        if not folder.has(RESULT):
            check_names(recipe, fault, home)
        texts = with_recorded(recipe, load_texts(_before_flips(recipe), recipe.seed, fault, home), fault, home)
        config = resolved(recipe, texts)
        if isinstance(folder, FollowedFolder):
            folder.wait_for_manifest()
        if folder.has(MANIFEST):
            _check_same(folder, config, device)
        if folder.has(RESULT):
            return LanguageRun(folder.path, folder.read_json(RESULT), True)
        if not folder.has(MANIFEST):
            folder.write_json(CONFIG, config)
            folder.write_json(MANIFEST, _manifest(recipe, config, device))
        if start_from is not None:
            adopt_start(folder, start_from, config, device)
        with _quiet(), contextlib.nullcontext() if folder.follows else shown_by(shown):
            runner = _Runner(with_local_names(recipe, home), texts, folder, device, seconds, fault, home)
            result = runner.run()
        return LanguageRun(folder.path, result, False)
    except ValueError:
        if not existed and not folder.has_progress:
            folder.discard()  # so that the repaired recipe can use the name
        raise
    finally:
        folder.release()


def _folder(recipe: LanguageRecipe, out: Path, resume: bool, device: str, fault: Fault) -> LanguageFolder:
    """The folder, claimed; or, in a further process of a launch, followed."""
    count, rank = join_launch(device)
    if count > 1 and recipe.algorithm is not None:
        raise fault(("algorithm",), f"one process runs a loop, and {count} were launched; start one")
    return LanguageFolder.claim(out, resume=resume) if rank == 0 else FollowedFolder(out)


def _before_flips(recipe: LanguageRecipe) -> LanguageData:
    """Of a loop: its rounds flip labels, each its own."""
    return recipe.data if recipe.algorithm is None else recipe.data.model_copy(update={"flip": 0.0})


def resolved(recipe: LanguageRecipe, texts: LanguageTexts) -> dict[str, Any]:
    """The whole recipe as JSON, with every default filled in and the hashes of what it reads."""
    config = plain_recipe(recipe)
    prints = {name: rows.fingerprint() for name, rows in texts.splits.items()}
    config |= {"backend": "torch", "inputs": texts.inputs or {}, "data_fingerprints": prints}
    loaded: dict[str, Any] = json.loads(json.dumps(config))
    return loaded


class _Runner:
    """The stages in order; each is skipped where the folder says that it is finished."""

    def __init__(
        self, recipe: LanguageRecipe, texts: LanguageTexts, folder: LanguageFolder, device: str, seconds: float,
        fault: Fault, home: Path,
    ) -> None:  # fmt: skip
        self.recipe, self.texts, self.folder, self.device, self.seconds = recipe, texts, folder, device, seconds
        self.fault = fault
        self.objective = recipe.objective.make()
        with at(fault, tokenizer_place(recipe)):
            self.tokenizer = recipe_tokenizer(recipe, texts)
        once = recipe.algorithm is None
        with at(fault, ("data",)):
            self.rows: TokenRows = token_rows(recipe, texts, self.tokenizer, self.objective if once else None)
        self.loop: Any = None
        if not once:
            from prefgeo.language.loop_run import LoopRun  # much to import, and only for loops
            from prefgeo.language.loop_sources import LoopParts

            parts = LoopParts(recipe, texts, fault, home, self.rows.longest_response).checked()
            self.loop = LoopRun(parts, self.rows, self.tokenizer, folder, device, seconds)
        self.options: dict[str, Any] = {
            "seed": recipe.seed, "device": device, "pad_id": int(self.tokenizer.pad_token_id), "seconds": seconds,
        }  # fmt: skip

    def run(self) -> dict[str, Any]:
        """Everything that is not yet finished, and the result."""
        if START not in self.folder.finished():
            model = start_model(self.recipe, self.tokenizer, self.fault)
            check_parts(model, self.recipe.model, self.fault)
            self._finish(START, self._evaluate(model.to(self.device)))
        if self.recipe.sft is not None and SFT not in self.folder.finished():
            model = start_model(self.recipe, self.tokenizer, self.fault)
            whole = run_supervised(model, self.rows.supervised, self.recipe.sft, self.folder, **self.options)
            model = self._save(SFT, model, whole)
            self._finish(SFT, self._evaluate(model))
        if PREFERENCE not in self.folder.finished():
            self._preference() if self.loop is None else self._rounds()
        return self._result()

    def _rounds(self) -> None:
        record = self.loop.run()
        model = stored_model(self.folder.model(PREFERENCE), self.recipe.model).to(self.device)
        self._finish(PREFERENCE, self._evaluate(model) | {LOOP: record})

    def _preference(self) -> None:
        policy = opened(self._start(), self.recipe.model, self.recipe.seed).to(self.device)
        reference = make_reference(self.recipe, policy, self.tokenizer, self.fault)
        reference.model.to(self.device)
        self._name_reference(weights_hash(reference.model, skip_adapters=reference.without_adapter))
        pad_id = self.options["pad_id"]
        rows = self.rows.splits[TRAIN]
        before = training_reference(reference, self.objective, rows, self.folder, pad_id)
        tested = () if self.folder.follows else self.texts.tests
        tests = {name: reference.log_probs(self.rows.splits[name], pad_id=pad_id) for name in tested}
        trained, total = trainable_count(policy)
        live = live_reference(reference) if needs_live_reference(self.objective) else None
        auxiliary = prepare_auxiliary(
            self.recipe, self.objective, policy, rows, before, self.folder, pad_id=pad_id
        )  # fmt: skip
        whole = run_preference(
            policy, rows, self.objective, before, live, self.recipe.training, self.folder, auxiliary=auxiliary,
            **self.options,
        )  # fmt: skip
        policy = self._save(PREFERENCE, policy, whole)
        record = self._evaluate(policy, tests) | {"trained_parameters": trained, "parameters": total}
        record |= auxiliary_record(auxiliary, self.folder)
        self._finish(PREFERENCE, record)

    def _evaluate(self, model: Any, references: dict[str, Any] | None = None) -> dict[str, Any]:
        recipe = self.recipe
        if self.folder.follows:
            return {}
        try:
            return evaluate_model(
                model, self.tokenizer, self.texts, self.rows, recipe.evaluate, seed=recipe.seed, references=references
            )
        except GenerationError as problem:
            raise self.fault(("evaluate", "max_new_tokens"), str(problem)) from None

    def _save(self, stage: str, model: Any, whole: dict[str, Any] | None) -> Any:
        """Write the model, of ``whole`` weights where it has only shards; returns the model to evaluate."""

        def save(folder: Path) -> None:
            model.save_pretrained(folder, state_dict=whole)
            self.tokenizer.save_pretrained(folder)

        self.folder.write_model(stage, save)
        if whole is None or self.folder.follows:
            return model
        return self._written(stage).to(self.device)

    def _start(self) -> Any:
        """The model that preference training begins with."""
        if self.recipe.sft is not None:
            return stored_model(self.folder.model(SFT), self.recipe.model)
        return start_model(self.recipe, self.tokenizer, self.fault)

    def _written(self, stage: str) -> Any:
        """The model that a stage wrote; adapters are put on the start again."""
        if stage == SFT or self.recipe.model.lora is None:
            return stored_model(self.folder.model(stage), self.recipe.model)
        from peft import PeftModel

        return PeftModel.from_pretrained(self._start(), str(self.folder.model(stage)))

    def _finish(self, stage: str, record: dict[str, Any]) -> None:
        self.folder.finish(stage, record)

    def _name_reference(self, found: str) -> None:
        """Put the reference's hash into the manifest; on resuming, it must be the one that is there."""
        manifest = self.folder.read_json(MANIFEST)
        if manifest.get("reference_sha256", found) != found:
            raise UsageError(
                f"{self.folder.path} cannot be continued here: the reference is another model than when it was begun; "
                "restore it, or start again with another --out"
            )
        self.folder.write_json(MANIFEST, manifest | {"reference_sha256": found})

    def _result(self) -> dict[str, Any]:
        if isinstance(self.folder, FollowedFolder):
            return self.folder.result()
        stages = {
            name: {key: value for key, value in record.items() if key != "metrics_size"}
            for name, record in self.folder.finished().items()
        }
        title = f"{self.recipe.name}: {self.objective.name}, {self.recipe.model.name} model, seed {self.recipe.seed}"
        loop = stages[PREFERENCE].pop(LOOP, {})
        draw = draw_loop_curve(title, self.folder.metrics(), loop) if loop else None
        self.folder.write(CURVE, draw or draw_curve(title, self.folder.metrics(), stages))
        result = {"seed": self.recipe.seed, "data": self.rows.counts, "stages": stages} | loop
        self.folder.write_json(RESULT, result)
        store = self.folder.path / STORE
        kept = self.recipe.keep_policies == "all"
        for rest in (self.folder.checkpoints(), store / CHECKPOINTS, *([] if kept else [store / POLICIES])):
            shutil.rmtree(rest, ignore_errors=True)
        return result


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars that transformers draws for every file; the run has its own."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _manifest(recipe: LanguageRecipe, config: Mapping[str, Any], device: str) -> dict[str, Any]:
    start = recipe.model.name if recipe.sft is None else "the model after SFT"
    names = {"initial": start, "adapter_off": f"{start}, adapters off", "path": recipe.reference.path}
    roles: dict[str, Any] = {"start": start, "policy": "the start, trained", "reference": names[recipe.reference.name]}
    if recipe.algorithm is not None:
        roles = {"base": start, "rounds": loop_settings(recipe, _no_fault).roles()}
    return {
        "config_sha256": digest(config),
        "backend": "torch",
        "device": device,
        "seed": recipe.seed,
        "inputs": config["inputs"],
        "roles": roles,
        "versions": run_versions() | versions(PACKAGES),
        "git_revision": git_revision(),
    }


def _no_fault(place: Path_, sentence: str) -> UsageError:
    raise AssertionError(f"{place}: {sentence}")  # the recipe was checked before


def _check_same(folder: LanguageFolder, config: Mapping[str, Any], device: str) -> None:
    stored, before = folder.read_json(MANIFEST), folder.read_json(CONFIG)
    if stored.get("config_sha256") != digest(before):
        raise UsageError(f"{folder.path / CONFIG} was changed after the run began; start again with another --out")
    check_unchanged(folder.path, before, config)
    if stored.get("device") != device:
        raise UsageError(f"{folder.path} was begun with --device {stored.get('device')}; continue it with that")
