"""WRPO on E6: win rate over alpha, static against dynamic, with and without fine-tuning; and the margins behind it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bandits.backend import ExactBackend
from bandits.schedules import Schedule
from bandits.worlds.simulated.catalogue import make_simulation, simulated_options
from figures.claims import Claim
from figures.paired import Difference
from objectives import make_objective
from prefgeo.algorithms.data_source import DataSource
from prefgeo.algorithms.wrpo import wrpo
from prefgeo.backend import FitPlan, constant_rate

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

TITLE = "WRPO in a bandit with source and imitation arms: static and dynamic alpha, against DPO on own pairs (paired)"
SIZE = (11.5, 4.4)
SETTINGS: dict[str, Any] = {
    "alphas": [0.1, 0.3, 0.5, 0.7, 0.9],  # WRPO, Fig. 5
    "betas": [1.0, 0.1],  # saturated and unsaturated margins
    "seeds": 12,
    "first_seed": 9000,  # none was used when the world was chosen
    "n_prompts": 600,
}
STAGES = {"with fine-tuning": True, "without": False}
ON, HYBRID, BOTH = "DPO on own pairs", "DPO on hybrid pairs", "WRPO with y_ls"


def compute(alphas: list[float], betas: list[float], seeds: int, first_seed: int, n_prompts: int) -> dict[str, Any]:
    """Win rates in percent (seeds,) by beta, stage and method; mean margins in nats at the first beta."""
    options = simulated_options("e6", {"n_prompts": n_prompts})
    backend = ExactBackend(make_simulation("e6", list(range(first_seed, first_seed + seeds)), options))
    schedule = Schedule("cosine", 0.1)
    plan, tuning = (
        FitPlan("adam", constant_rate(rate), epochs=1, batch_size=options.batch_size, schedule=schedule)
        for rate in (options.learning_rate, options.sft_learning_rate)
    )
    rates: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    margins: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for beta in betas:
        rates[f"{beta:g}"], margins[f"{beta:g}"] = {}, {}
        for stage, tuned in STAGES.items():
            rates[f"{beta:g}"][stage], margins[f"{beta:g}"][stage] = {}, {}
            for method, (name, kind, values) in _methods(alphas, beta).items():
                make = partial(make_objective, name, **values)
                found = wrpo(backend, make, data=DataSource(kind), plan=plan, supervised=tuning if tuned else None)
                rates[f"{beta:g}"][stage][method] = 100.0 * np.asarray(found.metrics["win_rate"])
                margins[f"{beta:g}"][stage][method] = _margins(backend, found.policy, found.reference)
    return {"alpha": np.asarray(alphas), "win_rate": rates, "margin": margins}


def _methods(alphas: list[float], beta: float) -> dict[str, tuple[str, str, dict[str, Any]]]:
    found: dict[str, tuple[str, str, dict[str, Any]]] = {
        ON: ("dpo", "candidates", {"beta": beta}),
        HYBRID: ("dpo", "hybrid", {"beta": beta}),
        BOTH: ("wrpo_rejected", "candidates", {"beta": beta, "alpha": alphas[len(alphas) // 2]}),
    }
    for schedule in ("static", "linear"):
        for alpha in alphas:
            values = {"beta": beta, "alpha": alpha, "schedule": schedule}
            found[f"{schedule} {alpha:g}"] = ("wrpo", "candidates", values)
    return found


def _margins(backend: ExactBackend, theta: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Mean of log-ratio differences on fresh pairs of the reference: y_wt over y_l, and y_ws over y_l."""
    rows = DataSource("candidates").draw(backend, reference, 1, split="heldout")
    policy = backend.world.policy
    ratio = policy.log_choices(theta) - policy.log_choices(reference)
    weights, down = rows.weight_array(), rows.rejected.total(ratio)
    assert rows.source_chosen is not None  # E6 has sources
    sides = {"own": rows.chosen.total(ratio), "hybrid": rows.source_chosen.total(ratio)}
    return {
        name: float(np.average(up - down, weights=np.broadcast_to(weights, up.shape))) for name, up in sides.items()
    }


def draw(table: Mapping[str, Any], figure: SubFigure) -> None:
    """Win rate minus that of DPO on own pairs over alpha, a panel for each beta; margins on the right."""
    betas = list(table["win_rate"])
    axes = figure.subplots(1, len(betas) + 1, squeeze=False)[0]
    figure.subplots_adjust(left=0.065, right=0.98, top=0.82, bottom=0.27, wspace=0.3)
    colours = {"with fine-tuning": "#00798c", "without": "#d1495b"}
    for place, beta in enumerate(betas):
        for stage, colour in colours.items():
            rates = table["win_rate"][beta][stage]
            for schedule, style in (("static", "--"), ("linear", "-")):
                found = [Difference.of(rates[f"{schedule} {alpha:g}"], rates[ON]) for alpha in table["alpha"]]
                label = f"{'dynamic' if schedule == 'linear' else 'static'}, {stage}"
                axes[place].errorbar(
                    table["alpha"], [d.mean for d in found], [d.half for d in found], fmt=style, marker="o",
                    markersize=3.5, color=colour, label=label,
                )  # fmt: skip
            hybrid = Difference.of(rates[HYBRID], rates[ON])
            axes[place].errorbar(
                [1.0], [hybrid.mean], [hybrid.half], fmt="s", color=colour, label=f"DPO on hybrid pairs, {stage}"
            )
        axes[place].axhline(0.0, color="black", linewidth=0.7)
        axes[place].set(title=f"beta = {beta}", xlabel="alpha")
        axes[place].set_xticks(table["alpha"], [f"{alpha:g}" for alpha in table["alpha"]])
    axes[0].set_ylabel("win rate, minus DPO on own pairs (points)")
    margins = table["margin"][betas[0]]["with fine-tuning"]
    names = {ON: "DPO\nown", HYBRID: "DPO\nhybrid", f"linear {_middle(table):g}": f"WRPO\ndyn. {_middle(table):g}"}
    for shift, (side, shade) in enumerate((("own", "#6b6b6b"), ("hybrid", "#edae49"))):
        at = np.arange(len(names)) + 0.35 * (shift - 0.5)
        what = "$y_{ws}$ over $y_l$" if side == "hybrid" else "$y_{wt}$ over $y_l$"
        axes[-1].bar(at, [margins[name][side] for name in names], width=0.33, color=shade, label=what)
    axes[-1].set_xticks(range(len(names)), list(names.values()))
    axes[-1].set(title=f"margins on fresh pairs, beta = {betas[0]}", ylabel="log-ratio difference, nats")
    axes[-1].legend(fontsize=7)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=3, handlelength=4)


def _middle(table: Mapping[str, Any]) -> float:
    """The alpha in the middle of the sweep."""
    return float(table["alpha"][len(table["alpha"]) // 2])


def claims(table: Mapping[str, Any]) -> list[Claim]:
    """WRPO's claims: hybrid pairs hurt, the weighted reward helps, dynamic beats static, y_ls does not help."""
    first, *other = list(table["win_rate"])
    low, middle, high = (float(table["alpha"][i]) for i in (0, len(table["alpha"]) // 2, -1))

    def gap(one: str, two: str, beta: str = first) -> dict[str, Difference]:
        return {s: Difference.of(rates[one], rates[two]) for s, rates in table["win_rate"][beta].items()}

    def told(found: Mapping[str, Difference]) -> str:
        return ", ".join(f"{difference} ({stage})" for stage, difference in found.items())

    hurts, helps = gap(HYBRID, ON), gap(f"linear {middle:g}", ON)
    better = {alpha: gap(f"linear {alpha:g}", f"static {alpha:g}") for alpha in (low, high)}
    best = gap(f"static {low:g}", f"linear {middle:g}")
    rejected = gap(BOTH, f"linear {middle:g}")
    margin = table["margin"][first]["with fine-tuning"]
    wide, small, fused = margin[HYBRID]["hybrid"], margin[ON]["own"], margin[f"linear {middle:g}"]
    mixed = middle * fused["hybrid"] + (1.0 - middle) * fused["own"]
    found = [
        Claim(
            f"DPO on hybrid pairs is worse than on the target's own pairs (beta = {first})",
            "WRPO (arXiv:2412.03187), Fig. 1",
            told(hurts),
            all(d.is_down for d in hurts.values()),
        ),
        Claim(
            f"WRPO with a dynamic alpha of {middle:g} beats DPO on own pairs (beta = {first})",
            "WRPO, Tab. 2",
            told(helps),
            all(d.is_up for d in helps.values()),
        ),
        Claim(
            "a dynamic alpha is better than a static one",
            "WRPO, Fig. 6",
            "; ".join(f"alpha {alpha:g}: {told(d)}" for alpha, d in better.items()),
            all(d.is_up for each in better.values() for d in each.values()),
        ),
        Claim(
            f"no static alpha beats the dynamic {middle:g}",
            "follows from WRPO, Fig. 6",
            f"static {low:g} minus dynamic {middle:g}: {told(best)}",
            not any(d.is_up for d in best.values()),
        ),
        Claim(
            "the sources' rejected responses do not help",
            "WRPO, Tab. 10",
            f"with y_ls minus without, dynamic {middle:g}: {told(rejected)}",
            not any(d.is_up for d in rejected.values()),
        ),
        Claim(
            "margins: own pairs smallest, WRPO between, hybrid pairs largest",
            "WRPO, Fig. 3",
            f"{small:.2f}, {mixed:.2f}, {wide:.2f} nats: of DPO, WRPO's weighted one, of DPO on hybrid pairs",
            small < mixed < wide,
        ),
    ]
    for beta in other:
        loose = gap(HYBRID, ON, beta)
        found.append(
            Claim(
                f"hybrid pairs hurt whatever the price of KL: at beta = {beta} too, where margins do not saturate",
                "WRPO, Sec. 1, which names the shift of distribution as the cause",
                told(loose),
                all(d.is_down for d in loose.values()),
            )
        )
    return found
