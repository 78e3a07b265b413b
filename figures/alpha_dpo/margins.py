"""alpha-DPO off-line: win rate over alpha and label noise, against SimPO, DPO and its own ablations. Paired seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bandits.backend import ExactBackend
from bandits.schedules import Schedule
from bandits.worlds.simulated.catalogue import make_simulation, simulated_options
from figures.claims import Claim
from figures.paired import Difference
from objectives import make_objective
from prefgeo.algorithms.single_round import single_round
from prefgeo.backend import FitPlan, constant_rate

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

TITLE = "alpha-DPO: a margin for each pair, off-line, in two worlds (arms; sequences with length normalisation)"
SIZE = (11.5, 6.6)
SETTINGS: dict[str, Any] = {
    "alphas": [0.05, 0.1, 0.3, 1.0, 2.0],  # alpha-DPO, Tab. 3 ends at 0.2, in units of beta there
    "noise": [0.0, 0.1, 0.3],
    "seeds": 10,
    "first_seed": 8200,  # none was used when the worlds were chosen
    "n_prompts": {"e4": 400, "e5": 1000},
}
WORLDS = {
    "e4": "E4: one-token arms, beta 2, gamma 1",
    "e5": "E5: sequences, per token, beta 10, gamma 3",
}
RATE = {"e4": "win_rate", "e5": "lc_win_rate"}
DPO_BETA = {"e4": 0.5, "e5": 0.1}  # its own scale: log-ratios of whole responses
SIMPO = "SimPO"
ABLATIONS: dict[str, dict[str, Any]] = {
    "gamma = 0": {"gamma": 0.0},
    "policy only": {"variant": "policy"},
    "reference only": {"variant": "ref"},
    "without z-score": {"statistics": "none"},
    "without stop-gradient": {"stop_gradient": False, "statistics": "batch"},
}
MIDDLE = 1.0
"""The alpha of the ablations, in logits."""


def compute(
    alphas: list[float], noise: list[float], seeds: int, first_seed: int, n_prompts: Mapping[str, int]
) -> dict[str, Any]:
    """Win rates against the base policy in percent and KL in nats, (noise, seeds), by world and method."""
    runs = [first_seed + i for _ in noise for i in range(seeds)]
    flip = np.repeat(noise, seeds)
    rates: dict[str, dict[str, np.ndarray]] = {}
    kl: dict[str, dict[str, np.ndarray]] = {}
    for world in WORLDS:
        options = simulated_options(world, {"n_prompts": n_prompts[world]})
        backend = ExactBackend(make_simulation(world, runs, options))
        rates[world], kl[world] = {}, {}
        for method, (name, values) in _methods(world, alphas, options).items():
            objective = make_objective(name, **values)
            plan = FitPlan(
                "adam", constant_rate(options.learning_rate), epochs=options.epochs, batch_size=options.batch_size,
                schedule=Schedule("cosine", 0.1),
            )  # fmt: skip
            found = single_round(backend, objective, kind="candidates", flip=flip, plan=plan)  # type: ignore[arg-type]
            shape = (len(noise), seeds)
            rates[world][method] = 100.0 * np.asarray(found.metrics[RATE[world]]).reshape(shape)
            kl[world][method] = np.asarray(found.metrics["kl"]).reshape(shape)
    return {"alpha": np.asarray(alphas), "noise": np.asarray(noise), "win_rate": rates, "kl": kl}


def _methods(world: str, alphas: list[float], options: Any) -> dict[str, tuple[str, dict[str, Any]]]:
    shared = {"beta": options.beta, "gamma": options.gamma}
    found: dict[str, tuple[str, dict[str, Any]]] = {
        SIMPO: ("simpo", shared),
        "SimPO, 2 gamma": ("simpo", {**shared, "gamma": 2.0 * options.gamma}),
        "DPO": ("dpo", {"beta": DPO_BETA[world]}),
    }
    for alpha in alphas:
        found[f"alpha {alpha:g}"] = ("alpha_dpo", {**shared, "alpha": alpha})
    for label, change in ABLATIONS.items():
        found[label] = ("alpha_dpo", {**shared, "alpha": MIDDLE, **change})
    return found


def gain(table: Mapping[str, Any], world: str, method: str, place: int, other: str = SIMPO) -> Difference:
    """Win rate minus that of another method (SimPO), at one noise level; in points."""
    rates = table["win_rate"][world]
    return Difference.of(rates[method][place], rates[other][place])


def draw(table: Mapping[str, Any], figure: SubFigure) -> None:
    """A row a world: gains over alpha, the ablations, and win rate against KL."""
    axes = figure.subplots(2, 3)
    figure.subplots_adjust(left=0.06, right=0.985, top=0.9, bottom=0.09, wspace=0.42, hspace=0.42)
    noise, colours = table["noise"], ("#00798c", "#edae49", "#d1495b", "#3d5a80")
    for row, (world, title) in enumerate(WORLDS.items()):
        sweep, parts, price = axes[row]
        for place, p in enumerate(noise):
            found = [gain(table, world, f"alpha {alpha:g}", place) for alpha in table["alpha"]]
            means, halves = [d.mean for d in found], [d.half for d in found]
            colour = colours[place % len(colours)]
            sweep.errorbar(table["alpha"], means, halves, fmt="o-", markersize=3, color=colour, label=f"{p:g} flipped")
            labels = ["SimPO, 2 gamma", "DPO", f"alpha {MIDDLE:g}", *ABLATIONS]
            labels = [label for label in labels if label in table["win_rate"][world]]
            each = [gain(table, world, label, place) for label in labels]
            at = np.arange(len(labels)) + 0.2 * (place - 0.5 * (len(noise) - 1))
            parts.errorbar([d.mean for d in each], at, xerr=[d.half for d in each], fmt="o", markersize=3, color=colour)
            along = [SIMPO, *(f"alpha {alpha:g}" for alpha in table["alpha"])]
            rates, kl = table["win_rate"][world], table["kl"][world]
            price.plot(
                [kl[m][place].mean() for m in along], [rates[m][place].mean() for m in along], "o-", markersize=3.5,
                color=colour,
            )  # fmt: skip
            for marker, method in (("s", "SimPO, 2 gamma"), ("^", "DPO")):
                price.plot(kl[method][place].mean(), rates[method][place].mean(), marker, color=colour, markersize=5)
        sweep.set_xscale("log")
        sweep.set_xticks(table["alpha"], [f"{alpha:g}" for alpha in table["alpha"]])
        sweep.set_title(title, loc="left", fontsize=8)
        sweep.set(xlabel="alpha (logits)", ylabel="win rate, minus SimPO (points)")
        parts.set_yticks(range(len(labels)), labels, fontsize=7)
        parts.set_xlabel(f"win rate, minus SimPO (points); ablations at alpha = {MIDDLE:g}")
        price.set(xlabel="KL to the base policy, nats", ylabel="win rate, %")
        sweep.axhline(0.0, color="black", linewidth=0.7)
        parts.axvline(0.0, color="black", linewidth=0.7)
    axes[0, 0].legend(fontsize=7)
    axes[0, 2].set_title("line: SimPO, then alpha rising;\nsquare: twice the gamma; triangle: DPO", fontsize=7)


def claims(table: Mapping[str, Any]) -> list[Claim]:
    """What the paper says of alpha, and what else would do as well."""
    noise = [float(p) for p in table["noise"]]
    low, high = float(table["alpha"][0]), max(a for a in table["alpha"] if a <= MIDDLE)

    def listed(method: str, other: str = SIMPO) -> tuple[list[Difference], str]:
        found = [(world, p, gain(table, world, method, i, other)) for world in WORLDS for i, p in enumerate(noise)]
        return [d for *_, d in found], "; ".join(f"{world}, p={p:g} {d}" for world, p, d in found)

    small, small_told = listed(f"alpha {low:g}")
    large, large_told = listed(f"alpha {high:g}")
    margin, margin_told = listed(f"alpha {high:g}", "SimPO, 2 gamma")
    plain, plain_told = listed(f"alpha {high:g}", "DPO")
    loose, loose_told = listed("without stop-gradient", f"alpha {high:g}")
    spread = [
        Difference.of(table["kl"][world][f"alpha {high:g}"][i], table["kl"][world][SIMPO][i])
        for world in WORLDS
        for i in range(len(noise))
    ]
    return [
        Claim(
            f"a small alpha, {low:g}, beats SimPO",
            "alpha-DPO (arXiv:2410.10148), Tab. 1 and Fig. 5",
            small_told,
            all(d.is_up for d in small),
        ),
        Claim(f"a large one, {high:g}, does", "ours", large_told, all(d.is_up for d in large)),
        Claim(
            f"alpha {high:g} beats SimPO with twice the gamma: a margin for each pair is more than a larger margin",
            "follows from alpha-DPO, Sec. 3",
            margin_told,
            all(d.is_up for d in margin),
        ),
        Claim(f"alpha {high:g} beats DPO", "alpha-DPO, Tab. 1", plain_told, all(d.is_up for d in plain)),
        Claim(
            "without the stop-gradient training collapses",
            "alpha-DPO, Tab. 2",
            f"against alpha {high:g} with it: {loose_told}",
            all(d.is_down for d in loose),
        ),
        Claim(
            f"alpha {high:g} stays nearer to the base policy than SimPO",
            "alpha-DPO, Fig. 3",
            "KL, minus SimPO's: " + "; ".join(str(d) for d in spread),
            all(d.is_down for d in spread),
        ),
    ]
