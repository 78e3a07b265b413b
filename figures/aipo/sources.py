"""Whose responses are ranked, and by whom: another model's or the policy's own, gold or proxy (Tables 1 and 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bandits.backend import ExactBackend
from bandits.preference_pairs import PreferencePairs
from bandits.responses import Responses
from bandits.worlds.simulated.catalogue import simulated_options
from bandits.worlds.simulated.sequence_world import SequenceWorld
from figures.aipo._loops import iterated, sequence_world
from figures.claims import Claim
from figures.paired import Difference
from objectives import make_objective
from prefgeo.backend import FitPlan

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

TITLE = "Whose responses, ranked by whom: one round of DPO on as many pairs each, and eight rounds on the policy's own"
SIZE = (11.5, 4.2)
SETTINGS: dict[str, Any] = {
    "bias": [0.0, 0.02, 0.04],  # of the proxy, in facts per token
    "seeds": 8,
    "first_seed": 8700,  # none was used when the world was chosen
    "pairs": 4000,
    "rounds": 8,
}
OTHER = {"good": -0.6, "spread": 1.0}  # the other model: states facts a little sooner, words of its own; ours
OWN, ITERATED = "own, proxy", "own, proxy, iterated"
VARIANTS = {  # AIPO, Tab. 1: UF; PairRM(UF); PairRM(Gen(UF)); and Sec. 4.2
    "other's, gold": "#edae49",
    "other's, proxy": "#d1495b",
    "own, gold": "#66a182",
    OWN: "#00798c",
    ITERATED: "#1d3557",
}


def compute(bias: list[float], seeds: int, first_seed: int, pairs: int, rounds: int) -> dict[str, Any]:
    """By bias and variant: LC win rate in percent and length, (seeds,). By source: log-probabilities and overlap."""
    runs = list(range(first_seed, first_seed + seeds))
    other = SequenceWorld.make([run + 10_000 for run in runs], simulated_options("e3", {"style": OTHER})).base_theta
    objective = make_objective("dpo", beta=0.1)
    quality: dict[str, dict[str, np.ndarray]] = {}
    length: dict[str, dict[str, np.ndarray]] = {}
    seen: dict[str, dict[str, np.ndarray]] = {}
    for b in bias:
        proxy = sequence_world(runs, rewards={"length_bias": b}, n_prompts=pairs)
        gold = sequence_world(runs, rewards={"length_bias": 0.0, "noise_sd": 0.0}, n_prompts=pairs)
        backend, plan = proxy
        found = {}
        for variant in VARIANTS:
            if variant == ITERATED:
                small = sequence_world(runs, rewards={"length_bias": b}, n_prompts=pairs // rounds)
                found[variant] = iterated(small, "dpo", {"beta": 0.1}, rounds).rounds[-1].metrics
                continue
            author, judge = variant.split(", ")
            policy = other if author == "other's" else backend.load()
            data = (gold if judge == "gold" else proxy)[0].preferences(
                policy, kind="candidates", flip=0.0, round_index=1
            )
            found[variant] = _trained(backend, plan, data, objective)
            if judge == "proxy":
                seen[author] = _seen(backend, data)
        quality[f"{b:g}"] = {variant: 100.0 * metrics["lc_win_rate"] for variant, metrics in found.items()}
        length[f"{b:g}"] = {variant: metrics["mean_length"] for variant, metrics in found.items()}
        base = backend.evaluate(backend.load())
        quality[f"{b:g}"]["base"], length[f"{b:g}"]["base"] = 100.0 * base["lc_win_rate"], base["mean_length"]
    metrics = sequence_world(runs, n_prompts=1)[0].evaluate(other)
    return {
        "bias": np.asarray(bias), "lc_win_rate": quality, "length": length, "seen": seen,
        "other_quality": 100.0 * metrics["lc_win_rate"],
    }  # fmt: skip


def _trained(backend: ExactBackend, plan: FitPlan, data: PreferencePairs, objective: Any) -> Mapping[str, np.ndarray]:
    base = backend.load()
    theta, _ = backend.fit(base, base, data, objective, plan=plan)
    return backend.evaluate(theta)


def _seen(backend: ExactBackend, data: PreferencePairs) -> dict[str, np.ndarray]:
    """What the base policy sees in the pairs: log-probabilities in nats and per token, and overlap; (seeds,) each."""
    log_choices = backend.world.policy.log_choices(backend.load())
    found = {}
    for side, responses in (("chosen", data.chosen), ("rejected", data.rejected)):
        log_prob = responses.total(log_choices)
        found[side] = log_prob.mean(axis=-1)
        found[f"{side}_per_token"] = (log_prob / responses.length).mean(axis=-1)
    found["overlap"] = _overlap(data.chosen, data.rejected).mean(axis=-1)
    return found


def _overlap(one: Responses, two: Responses, n_tokens: int = 6) -> np.ndarray:
    """2 |one and two| / (|one| + |two|) as multisets of tokens (Dice), whatever the state they were drawn in."""
    bags = []
    for each in (one, two):
        assert each.counts is not None
        bags.append(each.counts.reshape(*each.counts.shape[:-1], -1, n_tokens).sum(axis=-2))
    return np.asarray(2.0 * np.minimum(*bags).sum(axis=-1) / (bags[0].sum(axis=-1) + bags[1].sum(axis=-1)))


def draw(table: Mapping[str, Any], figure: SubFigure) -> None:
    """Left and middle: quality and length by bias; right: what the base policy sees in the pairs."""
    axes = figure.subplots(1, 3, width_ratios=[1.3, 1.3, 1.0])
    figure.subplots_adjust(left=0.06, right=0.985, top=0.87, bottom=0.25, wspace=0.25)
    names = list(table["lc_win_rate"])
    for panel, quantity in zip(axes[:2], ("lc_win_rate", "length"), strict=True):
        for place, (variant, colour) in enumerate(VARIANTS.items()):
            _bars(panel, [table[quantity][name][variant] for name in names], place, colour, variant)
        panel.set_xticks(np.arange(len(names)), [f"b = {name}" for name in names])
    base = np.mean([table["lc_win_rate"][name]["base"].mean() for name in names])
    axes[0].axhline(base, color="#6b6b6b", linewidth=0.7)
    axes[0].set(ylabel="LC win rate against SFT, %", ylim=(40, None))
    axes[1].axhline(table["length"][names[0]]["base"].mean(), color="#6b6b6b", linewidth=0.7)
    axes[1].set(ylabel="mean length, tokens", yscale="log")
    axes[1].set_yticks([5, 10, 20, 40], ["5", "10", "20", "40"])
    axes[1].minorticks_off()
    for place, (author, colour) in enumerate((("other's", "#d1495b"), ("own", "#00798c"))):
        seen = table["seen"][author]
        for offset, side in ((-0.17, "chosen"), (0.17, "rejected")):
            axes[2].bar(place + offset, seen[side].mean(), 0.3, color=colour, alpha=1.0 if side == "chosen" else 0.5)
        overlap = f"overlap {seen['overlap'].mean():.2f}"
        axes[2].text(place, 0.5, overlap, ha="center", va="bottom", fontsize=8)
    axes[2].set_xticks([0, 1], ["other's pairs", "own pairs"])
    axes[2].set(ylabel="log ref(y), nats; chosen and rejected (pale)")
    axes[2].set_ylim(top=4.0)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=len(VARIANTS))


def _bars(panel: Any, values: Sequence[np.ndarray], place: int, colour: str, label: str) -> None:
    x = np.arange(len(values)) + (place - 2) * 0.16
    found = [Difference.of(each, 0.0) for each in values]
    panel.bar(x, [each.mean for each in found], 0.15, color=colour, label=label)
    panel.errorbar(
        x, [each.mean for each in found], [each.half for each in found], color="black", linewidth=0.8, linestyle=""
    )


def claims(table: Mapping[str, Any]) -> list[Claim]:
    """What AIPO's Tables 1 and 2 say of sources and rankers."""
    names = list(table["lc_win_rate"])

    def gaps(quantity: str, one: str, two: str) -> dict[str, Difference]:
        return {name: Difference.of(table[quantity][name][one], table[quantity][name][two]) for name in names}

    def listed(found: Mapping[str, Difference], unit: str) -> str:
        return "; ".join(f"b={name}: {value}" for name, value in found.items()) + f" {unit}"

    ranker = gaps("lc_win_rate", "other's, proxy", "other's, gold")
    author = gaps("lc_win_rate", OWN, "other's, proxy")
    longer = gaps("length", OWN, "other's, proxy")
    rounds = gaps("lc_win_rate", ITERATED, OWN)
    own, other = table["seen"]["own"], table["seen"]["other's"]
    overlap = Difference.of(own["overlap"], other["overlap"])
    chosen = Difference.of(own["chosen_per_token"], other["chosen_per_token"])
    tab_1 = "AIPO (arXiv:2409.08845), Tab. 1"
    return [
        Claim(
            "a proxy in the place of the gold ranking changes little (less than 1 point either way)",
            f"{tab_1}, row 2 against 1",
            listed(ranker, "points"),
            all(abs(value.mean) + value.half < 1.0 for value in ranker.values()),
        ),
        Claim(
            "the policy's own responses beat another model's",
            f"{tab_1}, row 3 against 2",
            listed(author, "points"),
            all(value.is_up for value in author.values()),
        ),
        Claim("... and make it write longer", f"{tab_1}, lengths", listed(longer, "tokens"),
              all(value.is_up for value in longer.values())),
        Claim(
            "as many own pairs in eight iterations are better than in one",
            "AIPO, Finding 1 and 2",
            listed(rounds, "points"),
            all(value.is_up for value in rounds.values()),
        ),
        Claim(
            "own responses are likelier per token than another model's, and chosen and rejected more alike",
            "AIPO, Tab. 2",
            f"chosen {chosen} nats per token, overlap {overlap}",
            chosen.is_up and overlap.is_up,
        ),
    ]  # fmt: skip
