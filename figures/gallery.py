"""The explicit list of figures, and how one is made: settings, compute, draw, claims, save."""

from __future__ import annotations

import difflib
import importlib
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from figures.claims import Claim
from figures.save import framed, provenance, save_figure
from figures.style import house_style

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure


class FigureError(ValueError):
    """A figure that cannot be made from what was given; the message is one sentence for the user."""


class FigureModule(Protocol):
    """What a figure module defines. With ``NEEDS_DATA = True`` compute also takes the votes file's path, ``data``."""

    TITLE: str
    SIZE: tuple[float, float]  # inches, without the caption
    SETTINGS: Mapping[str, Any]

    def compute(self, **settings: Any) -> dict[str, Any]:
        """Numbers only: a table of arrays and scalars."""
        ...

    def draw(self, table: Mapping[str, Any], figure: SubFigure) -> None:
        """Marks only: the table drawn on the given part of a figure."""
        ...

    def claims(self, table: Mapping[str, Any]) -> list[Claim]:
        """What the figure says, judged by its own numbers."""
        ...


# name -> module; imported when made, so that listing is quick
FIGURES: dict[str, str] = {
    "auxdpo_figure_1": "figures.auxdpo.figure_1",
    "auxdpo_figure_2": "figures.auxdpo.figure_2",
    "auxdpo_figure_3": "figures.auxdpo.figure_3",
    "phase_diagram": "figures.auxdpo.phase_diagram",
    "beta_sweep": "figures.auxdpo.beta_sweep",
    "convergence_rates": "figures.auxdpo.convergence_rates",
    "weighted_null_space": "figures.auxdpo.weighted_null_space",
    "untied_dimension": "figures.auxdpo.untied_dimension",
    "relinearised": "figures.auxdpo.relinearised",
    "table_7_4": "figures.auxdpo.table_7_4",
    "vote_bandit": "figures.auxdpo.vote_bandit",
    "mmlu_pro_study": "figures.auxdpo.mmlu_pro_study",
    "tpmm_noise": "figures.tpmm_dpo.noise_and_merging",
    "tpmm_weights": "figures.tpmm_dpo.learned_weights",
    "tpmm_degradation": "figures.tpmm_dpo.degradation",
    "aipo_length": "figures.aipo.length_growth",
    "aipo_iterations": "figures.aipo.iterations",
    "aipo_frontier": "figures.aipo.frontier",
    "aipo_sources": "figures.aipo.sources",
    "aipo_agreement": "figures.aipo.agreement",
    "aipo_ablations": "figures.aipo.ablations",
    "alpha_dpo_margins": "figures.alpha_dpo.margins",
    "wrpo_alpha": "figures.wrpo.alpha_sweep",
    "wrpo_sources": "figures.wrpo.sources",
}


@dataclass(frozen=True)
class Made:
    """One figure that was made or skipped: its files, claims, seconds, and why it was skipped (None if made)."""

    name: str
    files: tuple[Path, ...]
    claims: tuple[Claim, ...]
    seconds: float
    skipped: str | None = None


def load(name: str) -> FigureModule:
    """The module of a figure. Raises ``FigureError`` for an unknown name, with the nearest known one."""
    if name not in FIGURES:
        near = difflib.get_close_matches(name, FIGURES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise FigureError(f"unknown figure {name!r}.{hint} Known: {', '.join(FIGURES)}.")
    return importlib.import_module(FIGURES[name])


def needs_data(name: str) -> bool:
    """Whether the figure is drawn from the votes file."""
    return bool(getattr(load(name), "NEEDS_DATA", False))


def make(name: str, folder: Path, *, data: Path | None = None, **overrides: Any) -> Made:
    """Compute, judge, draw and save one figure; ``overrides`` replace entries of its SETTINGS.

    A figure that needs the votes file is skipped, with the reason, when ``data`` is None.
    """
    module, begun = load(name), time.perf_counter()
    settings = {**module.SETTINGS, **_known(name, module, overrides)}
    if needs_data(name):
        if data is None:
            reason = "needs the votes file: give --data FILE or set PREFGEO_DATA to its folder"
            return Made(name, (), (), 0.0, reason)
        settings["data"] = data
    table = module.compute(**settings)
    verdicts = module.claims(table)
    with house_style():
        figure, canvas = framed(module.SIZE, module.TITLE, verdicts)
        module.draw(table, canvas)
        record = {
            "figure": name,
            "title": module.TITLE,
            "settings": {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()},
            "claims": [claim.to_json() for claim in verdicts],
            "provenance": provenance(),
            "data": table,
        }
        files = save_figure(figure, folder, name, record)
    return Made(name, tuple(files), tuple(verdicts), time.perf_counter() - begun)


def make_all(
    names: Sequence[str], folder: Path, *, data: Path | None = None, report: Callable[[str], None] | None = None
) -> list[Made]:
    """Make several figures in order (all when ``names`` is empty); ``report`` is told the name of each before it."""
    chosen = list(names) or list(FIGURES)
    for name in chosen:
        load(name)  # an unknown name stops before any work
    results = []
    for name in chosen:
        if report is not None:
            report(name)
        results.append(make(name, folder, data=data))
    return results


def _known(name: str, module: FigureModule, overrides: Mapping[str, Any]) -> Mapping[str, Any]:
    allowed = set(inspect.signature(module.compute).parameters) - {"data"}
    for key in overrides:
        if key not in allowed:
            raise FigureError(f"figure {name!r} has no setting {key!r}; it has {', '.join(sorted(allowed))}")
    return overrides
