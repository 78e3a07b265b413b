"""What AIPO's term sees: log-probability against length, agreement against length difference, and what follows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bandits.worlds.simulated.catalogue import simulated_options
from bandits.worlds.simulated.sequence_sampling import SequenceResponses
from bandits.worlds.simulated.sequence_world import SequenceWorld
from figures.aipo._loops import by_iteration, iterated, sequence_world
from figures.claims import Claim
from figures.paired import Difference

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

TITLE = "Agreement-awareness and length: s_ref = log ref(y_w) - log ref(y_l); with skew, some tokens are rare"
SIZE = (11.5, 5.8)
SETTINGS: dict[str, Any] = {
    "skews": [0.0, 1.0, 2.0],  # 0: a token costs about the same everywhere; more: classes differ in nats per token
    "bias": 0.04,  # of the proxy, in facts per token
    "alpha": 0.3,  # ours: the paper's .05 moves little at log-ratios this small
    "seeds": 6,
    "first_seed": 8600,  # none was used when the world was chosen
    "rounds": 8,
    "n_prompts": 500,
}
SHOWN = 400  # points of the first seed in a panel
METHODS: dict[str, tuple[str, str]] = {"DPO": ("dpo", "#6b6b6b"), "AIPO, no NLL": ("aipo", "#00798c")}


def compute(
    skews: list[float], bias: float, alpha: float, seeds: int, first_seed: int, rounds: int, n_prompts: int
) -> dict[str, Any]:
    """By skew: the two correlations of each seed, Eq. 11's weights, points of the first seed, lengths by iteration."""
    runs = list(range(first_seed, first_seed + seeds))
    table: dict[str, Any] = {"skew": np.asarray(skews), "alpha": alpha}
    for skew in skews:
        given = {"style": {"skew": skew}, "rewards": {"length_bias": bias}, "n_prompts": n_prompts}
        world = sequence_world(runs, **given)
        values = {"DPO": {"beta": 0.1}, "AIPO, no NLL": {"beta": 0.1, "alpha": alpha, "nll_weight": 0.0}}
        lengths = {
            method: by_iteration(iterated(world, name, values[method], rounds), "mean_length")
            for method, (name, _) in METHODS.items()
        }
        table[f"{skew:g}"] = {**_pairs(runs, given, alpha), "length": lengths}
    return table


def _pairs(runs: list[int], given: Mapping[str, Any], alpha: float) -> dict[str, Any]:
    """What the base policy's candidates look like to the base policy, seed by seed."""
    world = SequenceWorld.make(runs, simulated_options("e3", given))
    candidates, scores = world.candidates(world.base_theta, "train", 1)
    rho, rho_pairs, shorter, points = [], [], [], {}
    for run in range(len(runs)):
        one = SequenceResponses(world.grammar, candidates.classes[run], candidates.counts[run])
        log_prob, length = one.log_prob(world.table(world.base_log_choices[run])), one.length
        ends = np.stack([scores[run].argmax(axis=-1), scores[run].argmin(axis=-1)], axis=-1)
        s_ref, longer = (-np.diff(np.take_along_axis(each, ends, axis=-1))[:, 0] for each in (log_prob, length))
        weight = 1.0 / (1.0 + np.exp(-alpha * 0.1 * s_ref))  # Eq. 11 at the start of a round, where s_theta = s_ref
        rho.append(np.corrcoef(length.ravel(), log_prob.ravel())[0, 1])
        rho_pairs.append(np.corrcoef(longer, s_ref)[0, 1])
        shorter.append(weight[longer < 0].mean() - weight[longer > 0].mean())
        if run == 0:
            points = {
                "point_length": length.ravel()[:SHOWN],
                "point_log_prob": log_prob.ravel()[:SHOWN],
                "point_longer": longer[:SHOWN],
                "point_s_ref": s_ref[:SHOWN],
            }
    return {"rho": np.array(rho), "rho_pairs": np.array(rho_pairs), "weight_gap": np.array(shorter), **points}


def draw(table: Mapping[str, Any], figure: SubFigure) -> None:
    """A column for each skew with both scatter plots; at the right, length by iteration for each skew."""
    import matplotlib.pyplot as plt

    names = _names(table)
    axes = figure.subplots(2, len(names) + 1, width_ratios=[1.0] * len(names) + [1.5], squeeze=False)
    figure.subplots_adjust(left=0.06, right=0.985, top=0.88, bottom=0.1, wspace=0.32, hspace=0.42)
    for column, name in enumerate(names):
        part = table[name]
        _scatter(axes[0, column], part["point_length"], part["point_log_prob"], part["rho"])
        axes[0, column].set(title=f"skew {name}", xlabel="length, tokens")
        _scatter(axes[1, column], part["point_longer"], part["point_s_ref"], part["rho_pairs"])
        axes[1, column].set_xlabel("|y_w| - |y_l|, tokens")
    axes[0, 0].set_ylabel("log ref(y), nats")
    axes[1, 0].set_ylabel("s_ref, nats")
    shades = plt.get_cmap("viridis")(np.linspace(0.0, 0.8, len(names)))
    for shade, name in zip(shades, names, strict=True):
        lengths = table[name]["length"]
        for row, values in enumerate((lengths["DPO"], lengths["DPO"] - lengths["AIPO, no NLL"])):
            steps = np.arange(len(values))
            axes[row, -1].plot(steps, values.mean(axis=-1), color=shade, marker=".", label=f"skew {name}")
            low, high = values.min(axis=-1), values.max(axis=-1)
            axes[row, -1].fill_between(steps, low, high, color=shade, alpha=0.1, linewidth=0)
    axes[0, -1].set(title="length under DPO, tokens")
    axes[1, -1].set(title="tokens that alpha saves", xlabel="iteration")
    axes[0, -1].legend()


def _scatter(axes: Axes, x: np.ndarray, y: np.ndarray, rho: np.ndarray) -> None:
    axes.plot(x, y, ".", markersize=2, color="#3d5a80", alpha=0.5)
    axes.text(0.97, 0.95, f"rho = {rho.mean():.2f}", transform=axes.transAxes, ha="right", va="top", fontsize=8)


def _names(table: Mapping[str, Any]) -> list[str]:
    return [f"{skew:g}" for skew in np.asarray(table["skew"])]


def claims(table: Mapping[str, Any]) -> list[Claim]:
    """What AIPO's appendix A.3 says of its term and length regularisation."""
    names = _names(table)
    even, rare = names[0], names[-1]

    def each(key: str) -> str:
        return "; ".join(f"skew {name}: {Difference.of(table[name][key], 0.0)}" for name in names)

    apart = {name: Difference.of(np.abs(table[name]["rho"]), np.abs(table[name]["rho_pairs"])) for name in names}
    saved = {name: table[name]["length"]["DPO"][-1] - table[name]["length"]["AIPO, no NLL"][-1] for name in names}
    all_saved = {name: Difference.of(value, 0.0) for name, value in saved.items()}
    less = Difference.of(saved[rare], saved[even])
    source = "AIPO (arXiv:2409.08845), Fig. 5 and 6"
    return [
        Claim(
            "longer responses have a lower log-probability: rho of -0.5 or stronger",
            "AIPO, Fig. 5: -0.69",
            each("rho"),
            all((mean := Difference.of(table[name]["rho"], 0.0)).mean + mean.half < -0.5 for name in names),
        ),
        Claim(
            "s_ref follows the length difference less than log-probability follows length",
            source + ": -0.47 against -0.69",
            f"{each('rho_pairs')}; |rho| lower by " + "; ".join(f"{value}" for value in apart.values()),
            all(value.is_up for value in apart.values()),
        ),
        Claim(
            "the term gives a pair whose chosen response is the shorter one a higher weight, on average",
            "AIPO, Eq. 11",
            each("weight_gap"),
            all(Difference.of(table[name]["weight_gap"], 0.0).is_up for name in names),
        ),
        Claim(
            "so it keeps iterated DPO shorter",
            "AIPO, Fig. 2 and 3",
            "; ".join(f"skew {name}: {value} tokens saved" for name, value in all_saved.items()),
            all(value.is_up for value in all_saved.values()),
        ),
        Claim(
            f"it saves less length where rare tokens blur the correlation (skew {rare} against {even})",
            "ours: if the term works as length regularisation",
            f"{less} tokens saved",
            less.is_down,
        ),
    ]
