"""One picture of a language-model run: losses, rewards, accuracy, and gold reward and length after each stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from prefgeo.language.folder import PREFERENCE, SFT
from prefgeo.language.panels import BLUE, DARK, GREY, RED, draw_panels

Lines = Sequence[Mapping[str, Any]]
CHOSEN, REJECTED, PLAIN = BLUE, RED, DARK
FEW = 5  # values that get a mark each


def draw_curve(title: str, metrics: Lines, stages: Mapping[str, Any]) -> bytes:
    """A PNG of metrics.jsonl and of what each stage ended with; the same bytes for the same numbers."""
    panels = [_preference_loss, _rewards, _accuracy]
    if any(line["stage"] == SFT for line in metrics):
        panels.insert(0, _supervised_loss)
    if any("generations" in record for record in stages.values()):
        panels += [_gold, _length]
    return draw_panels(title, [partial(panel, metrics=metrics, stages=stages) for panel in panels])


def _supervised_loss(axes: Any, metrics: Lines, stages: Mapping[str, Any]) -> None:
    _line(axes, metrics, SFT, "loss", PLAIN)
    axes.set_title("SFT: loss (nats per token)", fontsize=9)


def _preference_loss(axes: Any, metrics: Lines, stages: Mapping[str, Any]) -> None:
    _line(axes, metrics, PREFERENCE, "loss", PLAIN)
    axes.set_title("preference training: loss", fontsize=9)


def _rewards(axes: Any, metrics: Lines, stages: Mapping[str, Any]) -> None:
    _line(axes, metrics, PREFERENCE, "rewards/chosen", CHOSEN, "chosen")
    _line(axes, metrics, PREFERENCE, "rewards/rejected", REJECTED, "rejected")
    axes.set_title("implicit reward", fontsize=9)
    axes.legend(fontsize=8, frameon=False)


def _accuracy(axes: Any, metrics: Lines, stages: Mapping[str, Any]) -> None:
    _line(axes, metrics, PREFERENCE, "rewards/accuracies", PLAIN)
    axes.set_ylim(0.0, 1.02)
    axes.set_title("implicit reward: accuracy on training pairs", fontsize=9)


def _gold(axes: Any, metrics: Lines, stages: Mapping[str, Any]) -> None:
    _bars(axes, stages, "gold", CHOSEN)
    axes.set_title("gold reward of generations", fontsize=9)


def _length(axes: Any, metrics: Lines, stages: Mapping[str, Any]) -> None:
    _bars(axes, stages, "length", PLAIN)
    axes.set_title("length of generations (words)", fontsize=9)


def _line(axes: Any, metrics: Lines, stage: str, name: str, colour: str, label: str | None = None) -> None:
    found = [(line["step"], line[name]) for line in metrics if line["stage"] == stage and name in line]
    marker = "o" if len(found) <= FEW else None  # one value makes no line
    steps, values = [step for step, _ in found], [value for _, value in found]
    axes.plot(steps, values, color=colour, label=label, linewidth=1.6, marker=marker, markersize=4)
    axes.set_xlabel("step", fontsize=8)


def _bars(axes: Any, stages: Mapping[str, Any], name: str, colour: str) -> None:
    """The mean after each stage, with 1.96 standard errors either side."""
    found = {stage: record["generations"] for stage, record in stages.items() if "generations" in record}
    means = [each[name] for each in found.values()]
    errors = [1.96 * each[f"{name}_standard_error"] for each in found.values()]
    axes.bar(list(found), means, yerr=errors, color=colour, width=0.6, capsize=3)
    axes.axhline(0.0, color=GREY, linewidth=0.8)
