"""What a step of AuxDPO costs beside a step of DPO: the same network, rows and optimiser, each mode of the constraint.

    python benchmarks/bench_auxdpo_dual.py [--width 1024] [--batch 64] [--repeats 7] [--device cpu]

The policy is a multilayer perceptron from a prompt's features to the logits of its 10 responses (2.4 million
parameters at the default width); a step is forward, backward and Adam on theta, and for AuxDPO the step of delta. In
units of one forward pass DPO costs 3, 4 with the reference computed in the step; a dual step adds a weighted backward
pass (3) and a forward-mode product (3) at the reference, for the 1/``every`` of its rows whose turn it is. Variants
alternate, so that a disturbance of the machine hits all of them; the least time of each counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from report import publish
from torch import Tensor, nn

from llm_backend.auxiliary import (
    Auxiliary,
    AuxiliaryOptions,
    AuxiliaryRows,
    ReferenceScores,
    Slots,
    reference_weights,
    rows_of,
)
from objectives import PairLogProbs, make_objective

PROMPTS, RESPONSES, FEATURES, BETA = 512, 10, 256, 0.1
STEPS = 6  # timed together


def main() -> None:
    """Time all variants and publish the ratios to DPO."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    world = World(given.width, given.batch, given.device)
    variants: dict[str, Callable[[], None]] = {
        "dpo": world.variant(None),
        "dpo_reference_in_the_step": world.variant(None, cached=False),
        "batch_penalty": world.variant(AuxiliaryOptions(mode="batch_penalty")),
        "cross_batch": world.variant(AuxiliaryOptions(mode="cross_batch")),
        **{f"dual_every_{k}": world.variant(AuxiliaryOptions(every=k)) for k in (1, 2, 3, 6)},
        "dual_every_3_reference_in_the_step": world.variant(AuxiliaryOptions(every=3), cached=False),
    }
    times = dict.fromkeys(variants, float("inf"))
    for _ in range(given.repeats):
        for name, work in variants.items():
            start = time.perf_counter()
            work()
            world.finish()
            times[name] = min(times[name], (time.perf_counter() - start) / STEPS)
    numbers: dict[str, Any] = {"parameters": world.n_parameters, **vars(given), "torch": torch.__version__}
    numbers["milliseconds"] = {name: round(1e3 * value, 2) for name, value in times.items()}
    numbers["times_dpo"] = {name: round(value / times["dpo"], 2) for name, value in times.items()}
    whole = times["dpo_reference_in_the_step"]
    numbers["dual_every_3_times_dpo_both_with_reference"] = round(
        times["dual_every_3_reference_in_the_step"] / whole, 2
    )
    publish("auxdpo_dual", numbers)


class World:
    """Prompts, rows and a network; ``variant`` makes a function that takes STEPS training steps."""

    def __init__(self, width: int, batch: int, device: str) -> None:
        torch.manual_seed(0)
        self.width, self.batch, self.device = width, batch, device
        self.prompts = torch.randn(PROMPTS, FEATURES, device=device)
        prompt = torch.arange(PROMPTS).repeat_interleave(RESPONSES - 1)
        other = torch.arange(1, RESPONSES).repeat(PROMPTS)
        self.chosen = torch.stack([prompt, torch.zeros_like(prompt)], dim=1)
        self.rejected = torch.stack([prompt, other], dim=1)
        self.slots = Slots.tied(self.chosen, self.rejected)
        self.n_parameters = sum(p.numel() for p in self.network().parameters())

    def network(self) -> nn.Module:
        """FEATURES -> width -> width -> RESPONSES."""
        torch.manual_seed(1)
        layers = (nn.Linear(FEATURES, self.width), nn.GELU(), nn.Linear(self.width, self.width), nn.GELU())
        return nn.Sequential(
            *layers, nn.Linear(self.width, self.width), nn.GELU(), nn.Linear(self.width, RESPONSES)
        ).to(self.device)

    def log_probs(self, network: nn.Module, keys: Tensor) -> Tensor:
        """log pi of (prompt, response) keys: chosen and rejected share their prompt's pass, as in the trainer."""
        half = keys.shape[0] // 2
        table = network(self.prompts[keys[:half, 0]]).log_softmax(-1)
        row = torch.arange(half, device=self.device)
        return torch.cat([table[row, keys[:half, 1]], table[row, keys[half:, 1]]])

    def variant(self, options: AuxiliaryOptions | None, *, cached: bool = True) -> Callable[[], None]:
        """DPO where there are no options; ``cached``: the reference's log-probs are looked up, not computed."""
        network, generator = self.network(), torch.Generator().manual_seed(2)
        scores, engine = ReferenceScores(network, self.log_probs), torch.optim.Adam(network.parameters(), 1e-5)
        with torch.no_grad():
            reference = network(self.prompts).log_softmax(-1)
        weights = reference_weights(self.slots, reference.flatten())
        auxiliary = None if options is None else Auxiliary(self.slots, options, weights=weights, dtype=torch.float32)
        objective = make_objective("dpo" if options is None else "auxdpo", beta=BETA)

        def draw() -> Tensor:
            return torch.randint(0, self.slots.n_rows, (self.batch,), generator=generator)

        def step() -> None:
            index = draw()
            keys, half = torch.cat([self.chosen[index], self.rejected[index]]).to(self.device), self.batch
            ref = reference[keys[:, 0], keys[:, 1]] if cached else scores.log_probs(keys)
            pi = self.log_probs(network, keys)
            deltas, part = {}, None
            if auxiliary is not None:
                part = rows_of(self.slots.chosen[index], self.slots.rejected[index], keys)
                delta = auxiliary.values(part.slots).to(self.device)
                deltas = {"delta_chosen": delta[:half], "delta_rejected": delta[half:]}
            batch = PairLogProbs(
                policy_chosen=pi[:half], policy_rejected=pi[half:], reference_chosen=ref[:half],
                reference_rejected=ref[half:], validate=False, **deltas,
            )  # fmt: skip
            engine.zero_grad()
            objective.mean_loss(batch).backward()
            engine.step()
            if auxiliary is not None and part is not None:
                auxiliary.step(scores, moving(auxiliary, index), second(auxiliary), met=part.slots)

        def moving(auxiliary: Auxiliary, index: Tensor) -> list[AuxiliaryRows]:
            kept = index[auxiliary.moves(self.slots.chosen[index])]
            if not kept.numel():
                return []
            keys = torch.cat([self.chosen[kept], self.rejected[kept]]).to(self.device)
            found = rows_of(self.slots.chosen[kept], self.slots.rejected[kept], keys)
            return [AuxiliaryRows(found.slots, found.shares * kept.numel() / index.numel(), keys)]

        def second(auxiliary: Auxiliary) -> Any:
            if auxiliary.options.mode != "cross_batch":
                return None
            index = draw()
            keys = torch.cat([self.chosen[index], self.rejected[index]]).to(self.device)
            return rows_of(self.slots.chosen[index], self.slots.rejected[index], keys)

        def steps() -> None:
            for _ in range(STEPS):
                step()

        return steps

    def finish(self) -> None:
        """Wait for the device."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()


if __name__ == "__main__":
    main()
