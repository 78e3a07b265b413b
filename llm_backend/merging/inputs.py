"""What the user names as models: folders, folders of checkpoints, and names on the hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from llm_backend.data.errors import import_extra
from llm_backend.merging.errors import MergeError
from llm_backend.merging.folders import ADAPTER_CONFIG, BESIDE

NUMBERED = re.compile(r"(.*[^0-9])([0-9]+)")
HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def locate(names: Sequence[str]) -> list[Path]:
    """A folder for each model: a folder of checkpoints stands for all of them in order, a hub name for its snapshot.

    Raises: MergeError for what is neither, for a trajectory with a missing checkpoint, and where the hub fails.
    """
    found: list[Path] = []
    for name in names:
        path = Path(name)
        if not path.exists() and HUB.fullmatch(name):
            found.append(_from_hub(name))
        elif path.is_dir() and not any((path / each).is_file() for each in ("config.json", ADAPTER_CONFIG)):
            found.extend(trajectory(path))
        else:
            found.append(path)
    return found


def trajectory(folder: Path) -> list[Path]:
    """The checkpoints NAME-1, NAME-2, ... (or at every so many steps) of a folder, by their number.

    Raises: MergeError where there are none, of several names, or where one is missing between two others.
    """
    named: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.iterdir()):
        match = NUMBERED.fullmatch(path.name)
        if path.is_dir() and match and not path.name.startswith("."):
            named.setdefault(match[1], {})[int(match[2])] = path
    if not named:
        raise MergeError(f"{folder} holds neither a model nor checkpoints (folders as checkpoint-100, checkpoint-200)")
    if len(named) > 1:
        raise MergeError(f"{folder} holds folders of several names, {' and '.join(map(repr, named))}; list the models")
    ((name, numbered),) = named.items()
    numbers = sorted(numbered)
    gaps = [after - before for before, after in pairwise(numbers)]
    # the last gap may be short: training ends when it ends
    spacing = min([*gaps[:-1], *([numbers[0]] if numbers[0] else gaps[:1])], default=0)
    for before, gap in zip(numbers, gaps, strict=False):
        if gap > spacing:
            raise MergeError(
                f"{folder} lacks {name}{before + spacing}, between {numbered[before].name} and "
                f"{numbered[before + gap].name}; restore it, or list the models to merge"
            )
    return [numbered[number] for number in numbers]


def _from_hub(name: str) -> Path:
    hub = import_extra("huggingface_hub", f"loading {name} (there is no such folder)")
    try:
        patterns = ["*.safetensors", "*.safetensors.index.json", ADAPTER_CONFIG, *BESIDE]
        return Path(hub.snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub and the network each raise their own kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise MergeError(f"there is no folder {name}, and it cannot be loaded from the hub either: {reason}") from None
