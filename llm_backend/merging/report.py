"""What a merge read and wrote, in memory and as merge.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_backend.merging.shards import Entry
from llm_backend.versions import versions

PACKAGES = ("prefgeo", "torch", "numpy")
RECORD = "merge.json"


@dataclass(frozen=True)
class Written:
    """The tensors of a result. ``kind`` is "model", "adapter", or "adapters into base"; ``ties`` are names that some
    input stored although they are another tensor, with the name that stays."""

    kind: str
    n_tensors: int
    n_parameters: int
    dtypes: tuple[str, ...]
    ties: dict[str, str]
    bytes_read: int
    bytes_written: int


@dataclass(frozen=True)
class MergeReport:
    """A merge that is done. ``hashes`` holds, for each input (and the base, last, where there is one), the SHA-256 of
    every file of its weights by name; None where hashing was off."""

    out: Path
    inputs: tuple[Path, ...]
    weights: tuple[float, ...]
    base: Path | None
    hashes: tuple[dict[str, str | None], ...]
    written: Written

    def to_json(self) -> dict[str, Any]:
        """As merge.json has it, with the versions of the packages."""
        inputs: list[dict[str, Any]] = [
            {"path": str(path), "weight": weight, "sha256": found}
            for path, weight, found in zip(self.inputs, self.weights, self.hashes, strict=False)
        ]
        base = {} if self.base is None else {"base": {"path": str(self.base), "sha256": self.hashes[-1]}}
        written = dict(vars(self.written)) | {"dtypes": list(self.written.dtypes)}
        return {"inputs": inputs, **base, **written, "versions": versions(PACKAGES)}


def written(kind: str, plans: Sequence[Entry], n_values: int, ties: dict[str, str], read: int, wrote: int) -> Written:
    """Counted from the plans."""
    dtypes = sorted({str(plan.dtype).removeprefix("torch.") for plan in plans})
    return Written(kind, len(plans), n_values, tuple(dtypes), ties, read, wrote)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """A JSON file with floats that read back exactly."""
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
