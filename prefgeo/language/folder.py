"""The folder of a language-model run: what any run has, and models, checkpoints and the record of finished stages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from prefgeo.run_folder import CHECKPOINT, CONFIG, MANIFEST, METRICS, RESULT, RunFolder

STAGES, CURVE, CHECKPOINTS = "stages.json", "curve.png", "checkpoints"
STORE = "store"
"""Of a loop: the policies of all rounds, what they wrote, and checkpoints."""
START, SFT, PREFERENCE = "start", "sft", "preference"
MODELS = {SFT: "sft", PREFERENCE: "model"}
"""The folder of the model that a stage ends with."""
UNFINISHED = ".unfinished"


class LanguageFolder(RunFolder):
    """Files and folders of one run. A stage is finished when ``stages.json`` says so; its model is then whole."""

    files: ClassVar[tuple[str, ...]] = (CONFIG, MANIFEST, METRICS, RESULT, CHECKPOINT, STAGES, CURVE)

    @classmethod
    def _ours(cls, name: str) -> bool:
        folders = (*MODELS.values(), *(f"{each}{UNFINISHED}" for each in MODELS.values()), CHECKPOINTS, STORE)
        return super()._ours(name) or name in folders

    @property
    def follows(self) -> bool:
        """Whether this is a further process of a launch, which writes nothing (``launch.FollowedFolder``)."""
        return False

    @property
    def has_progress(self) -> bool:
        """Whether a finished stage or a checkpoint would be lost with the folder."""
        return self.has(STAGES) or self.checkpoints().exists()

    def discard(self) -> None:
        """Remove what this run wrote, for a run that could not begin."""
        shutil.rmtree(self.checkpoints(), ignore_errors=True)
        super().discard()

    def finished(self) -> dict[str, Any]:
        """What each finished stage ended with, by name."""
        return self.read_json(STAGES) if self.has(STAGES) else {}

    def finish(self, stage: str, record: dict[str, Any]) -> None:
        """Remember a finished stage, and how long the metrics were then."""
        self.write_json(STAGES, self.finished() | {stage: record | {"metrics_size": self.metrics_size()}})

    def model(self, stage: str) -> Path:
        """Where the model of a stage is."""
        return self.path / MODELS[stage]

    def write_model(self, stage: str, save: Callable[[Path], None]) -> None:
        """A whole model folder or none: ``save`` writes into one that is renamed when it is done."""
        target = self.model(stage)
        part = target.with_name(f"{target.name}{UNFINISHED}")
        for old in (part, target):
            shutil.rmtree(old, ignore_errors=True)
        save(part)
        for weights in part.glob("*.safetensors"):  # safetensors writes files that only their owner can read
            shutil.copymode(next(part.glob("*config.json")), weights)
        part.rename(target)

    def checkpoints(self, stage: str = "") -> Path:
        """Where the checkpoints of a stage are, until the run is finished."""
        return self.path / CHECKPOINTS / stage

    def earlier_metrics(self) -> int:
        """The size of metrics.jsonl at the end of the last finished stage."""
        return max((int(each["metrics_size"]) for each in self.finished().values()), default=0)

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of metrics.jsonl."""
        path = self.path / METRICS
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
