"""Metrics sent on while a run goes on: to TensorBoard or Weights & Biases, where they are installed."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol

from prefgeo.errors import UsageError, look_up

Line = Mapping[str, Any]
"""A line of metrics.jsonl: ``step``, ``seed``, perhaps ``stage``, and numbers."""


class Tracker(Protocol):
    """Is told of every line that a run logs. What a run continues after a kill, it tells again."""

    def log(self, line: Line) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in FOLDER/tensorboard, a folder of them for each seed; tags are STAGE/NAME."""

    package = "tensorboardX"

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDERS["tensorboard"]
        self.writers: dict[int, Any] = {}

    def log(self, line: Line) -> None:
        """One scalar for each number."""
        writer = self.writers.get(line["seed"])
        if writer is None:
            from tensorboardX import SummaryWriter

            writer = self.writers[line["seed"]] = SummaryWriter(str(self.folder / f"seed-{line['seed']}"))
        for name, value in named(line).items():
            writer.add_scalar(name, value, line["step"])
        writer.flush()

    def close(self) -> None:
        """Write what is left."""
        for writer in self.writers.values():
            writer.close()


class WandB:
    """A run of Weights & Biases for each seed, grouped by the folder; its files are in FOLDER/wandb. A run that
    continues goes on in the same one. Its project, entity and mode are read from the environment, as WANDB_PROJECT."""

    package = "wandb"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs: dict[int, Any] = {}

    def log(self, line: Line) -> None:
        """One entry a line; ``step`` is a number in it, as stages begin anew at 0."""
        run = self.runs.get(line["seed"])
        if run is None:
            run = self.runs[line["seed"]] = self._begin(int(line["seed"]))
        run.log({**named(line), f"{line.get('stage', 'run')}/step": line["step"]})

    def close(self) -> None:
        """The runs are over, or were broken off."""
        for run in self.runs.values():
            run.finish()

    def _begin(self, seed: int) -> Any:
        import wandb

        config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        manifest = json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))
        try:
            return wandb.init(
                dir=str(self.folder), group=self.folder.name, name=f"{self.folder.name}-seed-{seed}", config=config,
                id=f"{manifest['config_sha256'][:16]}-{seed}", resume="allow", reinit="create_new",
            )  # fmt: skip
        except Exception as error:  # whatever its client says of keys and networks
            raise UsageError(f"--track wandb: {' '.join(str(error).split())}; try WANDB_MODE=offline") from None


FOLDERS = {"tensorboard": "tensorboard", "wandb": "wandb"}
"""What each tracker writes within the folder of a run."""
TRACKERS: dict[str, Callable[[Path], Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB}
_OPEN: ContextVar[tuple[Tracker, ...]] = ContextVar("trackers", default=())


@contextmanager
def tracked(names: Sequence[str], folder: Path) -> Iterator[None]:
    """Send on what the run in ``folder`` logs. Raises ``UsageError`` for an unknown tracker, or one not installed."""
    made = []
    for name in dict.fromkeys(names):
        kind: Any = look_up("tracker", name, TRACKERS)
        if importlib.util.find_spec(kind.package) is None:
            raise UsageError(
                f"--track {name} needs {kind.package}, which is not installed: pip install 'prefgeo[{name}]'"
            )
        made.append(kind(folder))
    token = _OPEN.set(tuple(made))
    try:
        yield
    finally:
        _OPEN.reset(token)
        for tracker in made:
            tracker.close()


def report(lines: Sequence[Line]) -> None:
    """Tell the open trackers, if there are any."""
    for tracker in _OPEN.get():
        for line in lines:
            tracker.log(line)


def named(line: Line) -> dict[str, float]:
    """The numbers of a line, by STAGE/NAME (without a stage: NAME)."""
    stage = f"{line['stage']}/" if line.get("stage") else ""
    plain = {name: value for name, value in line.items() if name not in ("stage", "step", "seed")}
    return {f"{stage}{name}": float(value) for name, value in plain.items() if isinstance(value, int | float)}
