"""The data of a language-model recipe: preferences in splits, what SFT imitates, and the texts for a tokenizer."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bandits.data_files import VARIABLE
from bandits.worlds.simulated.catalogue import SIMULATED, simulated_options
from bandits.worlds.simulated.options import WorldOptionError
from bandits.worlds.simulated.sequence_options import SequenceOptions
from geometry.errors import nearest_name
from llm_backend.data import (
    DataError,
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
from prefgeo.language.recipe import LanguageData
from prefgeo.language.world_text import TextWorld
from prefgeo.recipes import WorldSpec
from prefgeo.yaml_reading import Fault

TRAIN, HELD_OUT, OUT_OF_DOMAIN = "train", "held_out", "out_of_domain"


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
        """The splits that are never trained on."""
        return {name: rows for name, rows in self.splits.items() if name != TRAIN}


def load_texts(spec: LanguageData, seed: int, fault: Fault, folder: Path) -> LanguageTexts:
    """Read or draw everything; file names start in ``folder``. Raises ``UsageError`` and ``DataError``."""
    found = _world(spec, seed, fault) if spec.format == "world" else _files(spec, seed, fault, folder)
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


def _world(spec: LanguageData, seed: int, fault: Fault) -> LanguageTexts:
    options = world_options(spec.world or WorldSpec(), fault)
    world = TextWorld.make(seed, options)
    pairs = {
        name: world.pairs(n, name, ranked_by=spec.ranked_by)
        for name, n in ((TRAIN, spec.rows or options.n_prompts), (HELD_OUT, spec.held_out))
    }
    return LanguageTexts(pairs, world.supervised(spec.supervised), world, {})


def _files(spec: LanguageData, seed: int, fault: Fault, folder: Path) -> LanguageTexts:
    source = find_source(str(spec.path), folder)
    try:
        records = load_records(source, split=spec.split)
        kind = detect(records[0]) if spec.format == "auto" else spec.format
        if kind == "mmlu_pro":
            splits = _questions(spec, records, seed, str(source))
        else:
            everything = load_preferences(source, format=kind, split=spec.split, **spec.options)
            splits = _by_prompt(everything, spec.test_fraction, seed)
    except DataError as error:
        where = "" if isinstance(source, Path) else f" (looked for in {folder} and in the folder {VARIABLE} names)"
        raise fault(("data",), f"{error}{where}") from None
    if spec.rows is not None:
        splits[TRAIN] = _evenly(splits[TRAIN], spec.rows)
    for name in (TRAIN, HELD_OUT):
        if not splits[name].rows:
            raise fault(("data",), f"no row of {spec.path} falls into {name}: give more rows, or another test_fraction")
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


def _by_prompt(everything: Preferences, fraction: float, seed: int) -> dict[str, Preferences]:
    """Rows with one prompt lie on one side, whatever else is in the data."""
    tested = [uniform("held out", seed, repr(row.prompt)) < fraction for row in everything.rows]
    train = tuple(row for row, test in zip(everything.rows, tested, strict=True) if not test)
    held_out = tuple(row for row, test in zip(everything.rows, tested, strict=True) if test)
    return {TRAIN: replace(everything, rows=train), HELD_OUT: replace(everything, rows=held_out)}


def _evenly(rows: Preferences, most: int) -> Preferences:
    """At most so many rows, evenly spaced: files are often sorted, by category for one."""
    n = len(rows.rows)
    return rows if n <= most else replace(rows, rows=tuple(rows.rows[i * n // most] for i in range(most)))


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
