"""One picture of a loop on a language model: what each round is worth, its losses, and the shares of merges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

Lines = Sequence[Mapping[str, Any]]
BLUE, RED, DARK, GREY = "#00798c", "#d1495b", "#1d3557", "#6b6b6b"
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
    from matplotlib.figure import Figure

    rounds = [loop["base"], *(each["metrics"] for each in loop["rounds"])]
    names = [name for name in SHOWN if name in rounds[0]]
    merged = [each["shares"] for each in loop["rounds"] if "shares" in each]
    panels = len(names) + 1 + bool(merged)
    columns = min(3, panels)
    figure = Figure(figsize=(3.6 * columns, 2.7 * -(-panels // columns)), layout="constrained")
    figure.suptitle(title, fontsize=11)
    for place in range(panels):
        axes = figure.add_subplot(-(-panels // columns), columns, place + 1)
        if place < len(names):
            _over_rounds(axes, rounds, names[place])
        elif place == len(names):
            _losses(axes, metrics)
        else:
            _shares(axes, merged)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()


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
