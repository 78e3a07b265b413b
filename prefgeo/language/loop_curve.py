"""One picture of a loop on a language model: what each round is worth, its losses, and the shares of merges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from prefgeo.language.panels import BLUE, DARK, GREY, RED, draw_panels

Lines = Sequence[Mapping[str, Any]]
SHOWN = {
    "gold": "gold reward",
    "facts": "facts",
    "lc_win_rate": "win rate against the base, lengths controlled",
    "length": "length",
    "kl": "KL to the base (nats)",
    "accuracy": "accuracy on held-out pairs",
}


def draw_loop_curve(title: str, metrics: Lines, loop: Mapping[str, Any]) -> bytes:
    """A PNG of ``base`` and ``rounds`` of result.json and of metrics.jsonl; the same bytes for the same numbers."""
    rounds = [loop["base"], *(each["metrics"] for each in loop["rounds"])]
    panels = [partial(_over_rounds, rounds=rounds, name=name) for name in SHOWN if name in rounds[0]]
    panels.append(partial(_losses, metrics=metrics))
    if merged := [each["shares"] for each in loop["rounds"] if "shares" in each]:
        panels.append(partial(_shares, merged=merged))
    return draw_panels(title, panels)


def _over_rounds(axes: Any, rounds: Lines, name: str) -> None:
    axes.plot(range(len(rounds)), [each.get(name) for each in rounds], color=BLUE, marker="o", markersize=4)
    axes.set_xticks(range(len(rounds)))
    axes.set_xlabel("round (0: the base)", fontsize=8)
    axes.set_title(SHOWN[name], fontsize=9)


def _losses(axes: Any, metrics: Lines) -> None:
    """Each stage of the loop behind the one before it."""
    found = [(line["stage"], line["loss"]) for line in metrics if line["stage"] not in ("sft", "preference")]
    found = [each for each in found if each[1] is not None]
    axes.plot(range(len(found)), [loss for _, loss in found], color=DARK, linewidth=1.4)
    for place in range(1, len(found)):
        if found[place][0] != found[place - 1][0]:
            axes.axvline(place - 0.5, color=GREY, linewidth=0.7, linestyle=":")
    axes.set_xlabel("logged step, stage after stage", fontsize=8)
    axes.set_title("loss", fontsize=9)


def _shares(axes: Any, merged: Sequence[Sequence[float]]) -> None:
    """The shares of each merge, stacked: the oldest policy below."""
    shades = (GREY, BLUE, RED, DARK, "#edae49", "#66a182")
    for place, shares in enumerate(merged, start=1):
        bottom = 0.0
        for policy, share in enumerate(shares):
            axes.bar(place, share, bottom=bottom, width=0.6, color=shades[policy % len(shades)])
            bottom += share
    axes.set_xticks(range(1, len(merged) + 1))
    axes.set_xlabel("after round", fontsize=8)
    axes.set_title("shares of the merge, oldest policy below", fontsize=9)
