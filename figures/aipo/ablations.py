"""AIPO's smaller claims: the filter of cut-off responses, rewards that fall, other base models, SPPO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bandits.backend import ExactBackend
from figures.aipo._loops import by_iteration, iterated, sequence_world
from figures.claims import Claim
from figures.paired import Difference
from objectives import make_objective
from prefgeo.backend import FitPlan

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

TITLE = "AIPO's smaller claims: cut-off responses, rewards of chosen and rejected, base models of three strengths"
SIZE = (11.5, 4.2)
SETTINGS: dict[str, Any] = {
    "bias": 0.04,  # of the proxy, in facts per token
    "filter_bias": [0.04, 0.06],  # where responses reach the limit
    "strengths": {"weak": -1.5, "usual": -0.9, "strong": -0.3},  # log-odds of a good token against all fillers
    "seeds": 6,
    "first_seed": 8800,  # none was used when the world was chosen
    "rounds": 8,
    "n_prompts": 500,
}
BETA = 0.1
LOSSES: dict[str, tuple[str, dict[str, float], str]] = {  # alpha and eta: ours
    "DPO": ("dpo", {"beta": BETA}, "#6b6b6b"),
    "AIPO, no NLL": ("aipo", {"beta": BETA, "alpha": 0.3, "nll_weight": 0.0}, "#66a182"),
    "AIPO": ("aipo", {"beta": BETA, "alpha": 0.3, "nll_weight": 0.2}, "#00798c"),
    "SPPO": ("sppo", {"eta": 10.0}, "#d1495b"),
}
TRACED = ("DPO", "AIPO, no NLL", "AIPO")
COMPARED = ("DPO", "SPPO", "AIPO")


def compute(
    bias: float, filter_bias: list[float], strengths: dict[str, float], seeds: int, first_seed: int, rounds: int,
    n_prompts: int,
) -> dict[str, Any]:  # fmt: skip
    """LC win rates in percent and lengths at the end, (seeds,); log-ratios of each round in nats, (rounds, seeds)."""
    runs = range(first_seed, first_seed + seeds)
    filtered: dict[str, dict[str, np.ndarray]] = {}
    for b in filter_bias:
        filtered[f"{b:g}"] = {}
        for dropped in (False, True):
            world = sequence_world(runs, rewards={"length_bias": b}, n_prompts=2 * n_prompts, drop_cut_off=dropped)
            last = iterated(world, "dpo", {"beta": BETA}, rounds)
            name = "dropped" if dropped else "kept"
            filtered[f"{b:g}"][name] = 100.0 * by_iteration(last, "lc_win_rate")[-1]
            filtered[f"{b:g}"][f"{name}_length"] = by_iteration(last, "mean_length")[-1]
            filtered[f"{b:g}"][f"{name}_share"] = by_iteration(last, "cut_off")[-1]
    world = sequence_world(runs, rewards={"length_bias": bias}, n_prompts=n_prompts)
    rewards = {loss: _rewards(*world, loss, rounds) for loss in TRACED}
    base: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for name, good in strengths.items():
        given = {"style": {"good": good}, "rewards": {"length_bias": bias}}
        world = sequence_world(runs, n_prompts=n_prompts, **given)
        found = {loss: iterated(world, LOSSES[loss][0], LOSSES[loss][1], rounds) for loss in COMPARED}
        base[name] = {
            loss: {
                "lc_win_rate": 100.0 * by_iteration(each, "lc_win_rate"),
                "length": by_iteration(each, "mean_length"),
            }
            for loss, each in found.items()
        }
    return {"filter": filtered, "rewards": rewards, "base": base}


def _rewards(backend: ExactBackend, plan: FitPlan, loss: str, rounds: int) -> dict[str, np.ndarray]:
    """log(pi_{t+1} / pi_t) of round t's chosen and rejected responses, on average: AIPO's loop, step by step."""
    name, values, _ = LOSSES[loss]
    theta, policy = backend.load(), backend.world.policy
    found: dict[str, list[np.ndarray]] = {"chosen": [], "rejected": []}
    for number in range(1, rounds + 1):
        data = backend.preferences(theta, kind="candidates", flip=0.0, round_index=number)
        after, _ = backend.fit(theta, theta, data, make_objective(name, **values), plan=plan)
        ratio = policy.log_choices(after) - policy.log_choices(theta)
        for side, responses in (("chosen", data.chosen), ("rejected", data.rejected)):
            found[side].append(responses.total(ratio).mean(axis=-1))
        theta = after
    return {side: np.stack(each) for side, each in found.items()}


def draw(table: Mapping[str, Any], figure: SubFigure) -> None:
    """Left: the filter; middle: rewards by round; right: quality against length for each base model."""
    axes = figure.subplots(1, 3, width_ratios=[0.8, 1.2, 1.4])
    figure.subplots_adjust(left=0.06, right=0.985, top=0.84, bottom=0.14, wspace=0.28)
    for place, values in enumerate(table["filter"].values()):
        for offset, which, colour in ((-0.17, "kept", "#6b6b6b"), (0.17, "dropped", "#00798c")):
            found = Difference.of(values[which], 0.0)
            label = f"cut-off pairs {which}" if place == 0 else None
            axes[0].bar(place + offset, found.mean, 0.3, color=colour, label=label)
            axes[0].errorbar(place + offset, found.mean, found.half, color="black", linewidth=0.8)
            share = 100.0 * values[f"{which}_share"].mean()
            axes[0].text(place + offset, 41.0, f"{share:.0f}%", ha="center", fontsize=7, color="white")
    axes[0].set_xticks(range(len(table["filter"])), [f"b = {name}" for name in table["filter"]])
    axes[0].set(ylim=(40, 80), ylabel="LC win rate of DPO, %", title="in white: cut off at the end")
    axes[0].legend(loc="upper center", fontsize=7)
    for loss in TRACED:
        for side, style in (("chosen", "-"), ("rejected", "--")):
            values = table["rewards"][loss][side].mean(axis=-1)
            label = loss if side == "chosen" else None
            axes[1].plot(np.arange(1, len(values) + 1), values, style, color=LOSSES[loss][2], label=label)
    axes[1].axhline(0.0, color="black", linewidth=0.6)
    axes[1].set(xlabel="iteration", ylabel="log(pi/ref), nats", title="chosen (solid) and rejected, in their round")
    axes[1].legend(fontsize=7)
    for (name, found), marker in zip(table["base"].items(), ("v", "o", "^"), strict=False):
        for loss in COMPARED:
            x, y = found[loss]["length"].mean(axis=-1), found[loss]["lc_win_rate"].mean(axis=-1)
            axes[2].plot(x, y, color=LOSSES[loss][2], linewidth=0.8)
            label = loss if name == next(iter(table["base"])) else None
            axes[2].plot(x[-1:], y[-1:], marker, color=LOSSES[loss][2], label=label)
        axes[2].plot([], [], marker, color="black", label=f"{name} base")
    axes[2].set(xlabel="mean length, tokens", title="LC win rate against its own base, %")
    axes[2].legend(fontsize=7, loc="lower right")


def claims(table: Mapping[str, Any]) -> list[Claim]:
    """What AIPO says of each."""
    helped = {name: Difference.of(each["dropped"], each["kept"]) for name, each in table["filter"].items()}
    shorter = {
        name: Difference.of(each["dropped_length"], each["kept_length"]) for name, each in table["filter"].items()
    }
    alpha, full = table["rewards"]["AIPO, no NLL"], table["rewards"]["AIPO"]
    falls = {side: Difference.of(alpha[side][-1], 0.0) for side in ("chosen", "rejected")}
    eased = Difference.of(full["chosen"][-1], alpha["chosen"][-1])

    def last(name: str, loss: str, quantity: str) -> np.ndarray:
        return np.asarray(table["base"][name][loss][quantity][-1])

    names = list(table["base"])
    sppo = {name: Difference.of(last(name, "AIPO", "lc_win_rate"), last(name, "SPPO", "lc_win_rate")) for name in names}
    growth = {name: last(name, "DPO", "length") / np.asarray(table["base"][name]["DPO"]["length"][0]) for name in names}
    less = Difference.of(growth[names[-1]], growth[names[0]])

    def listed(found: Mapping[str, Difference], unit: str, sign: str = "b=") -> str:
        return "; ".join(f"{sign}{name}: {value}" for name, value in found.items()) + f" {unit}"

    return [
        Claim(
            "leaving out pairs with a cut-off response helps a little",
            "AIPO (arXiv:2409.08845), Tab. 5: +0.6 points",
            f"{listed(helped, 'points')}; length {listed(shorter, 'tokens')}",
            all(each.is_up for each in helped.values()),
        ),
        Claim(
            "without NLL the rewards of chosen and of rejected responses fall",
            "AIPO, Fig. 4",
            "log(pi/ref) in the last iteration, " + listed(falls, "nats", ""),
            all(each.is_down for each in falls.values()),
        ),
        Claim("NLL raises the chosen ones", "AIPO, Fig. 4", f"{eased} nats", eased.is_up),
        Claim(
            "AIPO beats SPPO on every base model",
            "AIPO, Tab. 3; one setting of each",
            listed(sppo, "points", ""),
            all(each.is_up for each in sppo.values()),
        ),
        Claim(
            "a stronger base model grows less in length under iterated DPO",
            "AIPO, App. A.2",
            "; ".join(f"{name}: x{value.mean():.2f}" for name, value in growth.items()) + f"; strong minus weak {less}",
            less.is_down,
        ),
    ]
