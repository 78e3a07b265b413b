"""What two runs would do alike is done once: one run begins with the finished first stages of another."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefgeo.language.folder import SFT, STAGES, START, LanguageFolder
from prefgeo.preparation import digest
from prefgeo.run_folder import CONFIG, MANIFEST, METRICS

DECIDING = ("tokenizer", "data", "sft", "evaluate", "seed", "backend", "inputs", "data_fingerprints")
"""The sections that decide the stages before preference training; of the model, all but what is then trained."""
LATER = ("trainable", "lora")
FLIPS = ("flip", "flip_mode")
"""What they turn around before a run begins is in the fingerprints; a loop turns labels around later."""


def start_key(config: Mapping[str, Any], seed: int | None = None) -> str:
    """A hash of all that decides the stages before preference training."""
    model = {name: value for name, value in config["model"].items() if name not in LATER}
    deciding = {name: config.get(name) for name in DECIDING}
    deciding["data"] = {name: value for name, value in config["data"].items() if name not in FLIPS}
    return digest(deciding | {"model": model} | ({} if seed is None else {"seed": seed}))


def adopt_start(folder: LanguageFolder, donor: Path, config: Mapping[str, Any], device: str) -> None:
    """Copy the model, the metrics and the records of the donor's finished stages before preference training.

    Nothing happens where this run has a finished stage of its own, or the donor would have computed something else.
    """
    if folder.finished() or donor == folder.path:
        return
    try:
        theirs, manifest, stages = (
            json.loads((donor / name).read_text(encoding="utf-8")) for name in (CONFIG, MANIFEST, STAGES)
        )
    except (OSError, ValueError):
        return  # no run yet, or not one that can be read: this one computes for itself
    if start_key(theirs) != start_key(config) or manifest.get("device") != device:
        return
    shared = {name: stages[name] for name in (START, SFT) if name in stages}
    if SFT in shared:
        folder.write_model(SFT, lambda part: _copy(donor / folder.model(SFT).name, part))
    size = max((int(each["metrics_size"]) for each in shared.values()), default=0)
    folder.cut_metrics(0)
    if size:
        with (donor / METRICS).open("rb") as stream:
            lines = stream.read(size).decode("utf-8").splitlines()
        folder.append_metrics([json.loads(line) for line in lines])
    folder.write_json(STAGES, shared)


def _copy(source: Path, target: Path) -> None:
    """The same files under another name where the file system allows it: a finished model is never written to."""

    def link(one: str, other: str) -> str:
        try:
            os.link(one, other)
        except OSError:
            shutil.copy2(one, other)
        return other

    shutil.copytree(source, target, copy_function=link)
