"""The data of a language-model recipe: preferences in splits, what SFT imitates, and the texts for a tokenizer."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from bandits.data_files import VARIABLE
from bandits.worlds.simulated.catalogue import SIMULATED, simulated_options
from bandits.worlds.simulated.options import WorldOptionError
from bandits.worlds.simulated.sequence_options import SequenceOptions
from geometry.errors import nearest_name
from llm_backend.data import (
    DataError,
    PreferenceRow,
    Preferences,
    ResponseSet,
    flip_labels,
    load_preferences,
    load_records,
    mmlu_pairs,
    questions_from_records,
    split_questions,
)
from llm_backend.data.hashing import uniform
from llm_backend.data.load import detect
from llm_backend.errors import BackendError
from prefgeo.language.recipe import LanguageData
from prefgeo.language.seed_task_text import SeedTaskOptions, split_tasks
from prefgeo.language.world_text import TextWorld
from prefgeo.recipes import WorldSpec
from prefgeo.yaml_reading import Fault

TRAIN, HELD_OUT, OUT_OF_DOMAIN, MERGE = "train", "held_out", "out_of_domain", "merge"
Item = TypeVar("Item")


@dataclass(frozen=True)
class LanguageTexts:
    """``splits``: preferences by name, ``train`` among them, tests after it; ``supervised`` None: SFT imitates the
    chosen responses of ``train``; ``world`` judges generations, where there is one; ``inputs``: SHA-256 of files."""

    splits: dict[str, Preferences]
    supervised: list[ResponseSet] | None = None
    world: TextWorld | None = None
    inputs: dict[str, str] | None = None

    @property
    def tests(self) -> dict[str, Preferences]:
        """The splits that nothing is learned from."""
        return {name: rows for name, rows in self.splits.items() if name not in (TRAIN, MERGE)}


def load_texts(spec: LanguageData, seed: int, fault: Fault, folder: Path) -> LanguageTexts:
    """Read or draw everything; file names start in ``folder``. Raises ``UsageError`` and ``DataError``."""
    read = {"world": _world, "seed_tasks": _tasks}.get(spec.format, _files)
    found = read(spec, seed, fault, folder)
    train = found.splits[TRAIN]
    if spec.flip:
        train = flip_labels(train, spec.flip, seed, mode=spec.flip_mode)
    return replace(found, splits=found.splits | {TRAIN: train})


def world_options(spec: WorldSpec, fault: Fault) -> SequenceOptions:
    """The settings of the world. Raises ``UsageError`` for a world without texts, or an option that it has not."""
    name, with_text = str(spec.name), [n for n, w in SIMULATED.items() if isinstance(w.options, SequenceOptions)]
    if name not in with_text:
        hint = nearest_name(name, with_text)
        raise fault(("data", "world", "name"), f"world {name!r} has no texts.{hint} Known: {', '.join(with_text)}")
    try:
        options: SequenceOptions = simulated_options(name, spec.options)
    except WorldOptionError as error:
        raise fault(("data", "world", "options", *error.place), str(error)) from None
    return options


def _world(spec: LanguageData, seed: int, fault: Fault, folder: Path) -> LanguageTexts:
    options = world_options(spec.world or WorldSpec(), fault)
    world = TextWorld.make(seed, options)
    pairs = {
        name: world.pairs(n, name, ranked_by=spec.ranked_by)
        for name, n in ((TRAIN, spec.rows or options.n_prompts), (HELD_OUT, spec.held_out))
    }
    return LanguageTexts(pairs, world.supervised(spec.supervised), world, {})


def _tasks(spec: LanguageData, seed: int, fault: Fault, folder: Path) -> LanguageTexts:
    source = find_source(str(spec.path), folder)
    try:
        tasks = split_tasks(source, SeedTaskOptions.of(spec.options), test_fraction=spec.test_fraction, seed=seed)
    except BackendError as error:
        raise fault(("data",), str(error)) from None
    splits = {TRAIN: tasks.train, HELD_OUT: tasks.held_out}
    splits[TRAIN] = replace(tasks.train, rows=tuple(evenly(tasks.train.rows, spec.rows)))
    return LanguageTexts(splits, tasks.supervised, inputs={Path(source).name: sha256(Path(source))})


def _files(spec: LanguageData, seed: int, fault: Fault, folder: Path) -> LanguageTexts:
    source = find_source(str(spec.path), folder)
    try:
        records = load_records(source, split=spec.split)
        kind = detect(records[0]) if spec.format == "auto" else spec.format
        if kind == "mmlu_pro":
            splits = _questions(spec, records, seed, str(source))
        else:
            everything = load_preferences(source, format=kind, split=spec.split, **spec.options)
            splits = _by_prompt(everything, spec, seed)
    except DataError as error:
        where = "" if isinstance(source, Path) else f" (looked for in {folder} and in the folder {VARIABLE} names)"
        raise fault(("data",), f"{error}{where}") from None
    splits[TRAIN] = replace(splits[TRAIN], rows=tuple(evenly(splits[TRAIN].rows, spec.rows)))
    for name in (TRAIN, HELD_OUT, *([MERGE] if spec.merge_fraction else [])):
        if not splits[name].rows:
            raise fault(("data",), f"no row of {spec.path} falls into {name}: give more rows, or other fractions")
    inputs = {source.name: sha256(source)} if isinstance(source, Path) and source.is_file() else {}
    return LanguageTexts(splits, inputs=inputs)


def _questions(spec: LanguageData, records: Sequence[Any], seed: int, where: str) -> dict[str, Preferences]:
    parts = split_questions(
        questions_from_records(records, where),
        test_fraction=spec.test_fraction, out_of_domain=spec.out_of_domain, seed=seed,
    )  # fmt: skip
    named = {TRAIN: parts.train, HELD_OUT: parts.in_domain, OUT_OF_DOMAIN: parts.out_of_domain}
    try:
        return {
            name: mmlu_pairs(questions, where, seed=seed, **spec.options)
            for name, questions in named.items()
            if questions
        } | {name: Preferences((), where) for name in (TRAIN, HELD_OUT) if not named[name]}
    except TypeError as error:
        raise DataError(f"{where}: format mmlu_pro does not take these options ({error})") from None


def _by_prompt(everything: Preferences, spec: LanguageData, seed: int) -> dict[str, Preferences]:
    """Rows with one prompt lie on one side, whatever else is in the data."""
    held_out, merged = spec.test_fraction, spec.test_fraction + (spec.merge_fraction or 0.0)
    names = (TRAIN, HELD_OUT, MERGE) if spec.merge_fraction else (TRAIN, HELD_OUT)
    sides: dict[str, list[PreferenceRow]] = {name: [] for name in names}
    for row in everything.rows:
        place = uniform("held out", seed, repr(row.prompt))
        sides[HELD_OUT if place < held_out else MERGE if place < merged else TRAIN].append(row)
    return {name: replace(everything, rows=tuple(rows)) for name, rows in sides.items()}


def evenly(items: Sequence[Item], most: int | None) -> Sequence[Item]:
    """At most so many of them (None: all), evenly spaced: files are often sorted, by category for one."""
    n = len(items)
    return items if most is None or n <= most else [items[i * n // most] for i in range(most)]


def find_source(path: str, folder: Path) -> str | Path:
    """The file or folder in the recipe's folder, or in the one that PREFGEO_DATA names; else the name as it stands."""
    for home in (folder, *([Path(named)] if (named := os.environ.get(VARIABLE)) else [])):
        local = home / Path(path).expanduser()
        if local.exists():
            return local
    return path


def sha256(path: Path) -> str:
    """The hash of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
