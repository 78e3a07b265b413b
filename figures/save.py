"""Write one figure as PNG, PDF and a JSON data file that says which code made it."""

from __future__ import annotations

import json
import os
import platform
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.claims import Claim
from prefgeo import __version__
from prefgeo.plain import plain
from prefgeo.runs import git_revision

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

LINE_HEIGHT = 0.17  # inches of caption per line of text
CAPTION_WIDTH = 14  # characters of caption per inch of figure width


def framed(size: tuple[float, float], title: str, claims: Sequence[Claim]) -> tuple[Figure, SubFigure]:
    """A figure of the given size (inches) with the claims printed below it; returns it and the part to draw on."""
    import matplotlib.pyplot as plt

    width, height = size
    lines: list[str] = []
    for claim in claims:
        lines += textwrap.wrap(claim.sentence(), int(CAPTION_WIDTH * width), subsequent_indent="    ")
    text_height = LINE_HEIGHT * (len(lines) + 0.5)
    figure = plt.figure(figsize=(width, height + text_height))
    parts: Any = figure.subfigures(2, 1, height_ratios=[height, text_height])
    top, bottom = parts
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    bottom.text(0.01, 0.98, "\n".join(lines), va="top", ha="left", fontsize=7.5, family="monospace")
    return figure, top


def save_figure(figure: Figure, folder: Path, name: str, record: Mapping[str, Any]) -> list[Path]:
    """Write ``name.png``, ``name.pdf`` and ``name.json`` into the folder, each complete or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for suffix in (".png", ".pdf"):
        path = folder / f"{name}{suffix}"
        part = folder / f".{name}.part{suffix}"
        metadata = {"CreationDate": None} if suffix == ".pdf" else None  # equal input, equal bytes
        try:
            figure.savefig(part, metadata=metadata)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)  # already renamed where all went well
        written.append(path)
    path = folder / f"{name}.json"
    part = folder / f".{name}.part.json"
    part.write_text(json.dumps(plain(record), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(part, path)
    return [*written, path]


def provenance() -> dict[str, str]:
    """Git revision (with ``+changes`` where files differ from it), package and library versions, machine."""
    return {
        "revision": git_revision() or "unknown",
        "prefgeo": __version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
