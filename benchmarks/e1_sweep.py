"""How much faster is a sweep in one batch?  E1, iterative DPO, 64 seeds x 5 noise levels x 3 rounds.

    python benchmarks/e1_sweep.py [--seeds 64] [--sample 40] [--threads 2]

Runs the sweep as one batch, then a sample of the same runs one at a time with the same code, and compares time per
run and the trained parameters. Times are wall-clock, best of seven, so wait until the machine is idle. The batch is
timed on one thread and on all cores; one run alone is too small for threads. Exits with 1 unless the batch is 10 times
faster and every parameter agrees to 1e-12 of its run's largest.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from bandits.groups import train_groups
from bandits.worlds.simulated.tabular import E1, TabularWorld
from geometry.pairs import FloatArray
from objectives import make_objective
from prefgeo.runs import git_revision

NOISE = (0.0, 0.1, 0.3, 0.5, 0.7)  # TPMM-DPO, Table 3
ROUNDS = 3


def sweep(seeds: list[int], flip: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Iterative DPO: theta after the last round (R, d), and win rates against the base policy (rounds, R)."""
    world, objective = TabularWorld.make(seeds, E1), make_objective("dpo", beta=E1.beta)
    theta, wins = world.base_theta, []
    for index in range(1, ROUNDS + 1):
        pairs = world.pairs(world.round_policy(theta), index, flip=flip)
        how = {"start": theta, "reference": theta, "optimiser": E1.optimiser(pairs), "steps": E1.steps}
        theta = train_groups(world.policy, pairs, objective, **how)
        wins.append(world.measure(theta)["win_rate"])
    return theta, np.stack(wins)


def batched_sweep(seeds: list[int], flip: FloatArray, threads: int) -> FloatArray:
    """The sweep as one batch on each thread (numpy lets go of the lock in its loops): theta (R, d)."""
    parts = np.array_split(np.arange(len(seeds)), threads)
    with ThreadPoolExecutor(threads) as pool:
        done = pool.map(lambda part: sweep([seeds[run] for run in part], flip[part])[0], parts)
        return np.concatenate(list(done))


def best_time(work, repeats: int = 7):  # type: ignore[no-untyped-def]
    """(fewest seconds, result)."""
    times = []
    for _ in range(repeats):
        before = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - before)
    return min(times), result


def main() -> int:
    """Run, print and judge."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=64)
    options.add_argument("--sample", type=int, default=40, help="how many of the runs to make one at a time")
    options.add_argument("--threads", type=int, default=os.cpu_count())
    given = options.parse_args()
    # a seed's settings side by side: they share its world and its draws
    seeds = [seed for seed in range(given.seeds) for _ in NOISE]
    flip = np.tile(NOISE, given.seeds)
    sample = np.unique(np.linspace(0, len(seeds) - 1, given.sample).astype(int))
    sweep(seeds[:5], flip[:5])  # imports and caches
    batched, theta = best_time(lambda: batched_sweep(seeds, flip, 1))
    spread, _ = best_time(lambda: batched_sweep(seeds, flip, given.threads))
    alone, singles = best_time(lambda: np.concatenate([sweep([seeds[i]], flip[i : i + 1])[0] for i in sample]))
    scale = np.abs(singles).max(axis=-1, keepdims=True)
    difference = float(np.max(np.abs(theta[sample] - singles) / scale))
    per_run = alone / sample.size
    print(f"{platform.machine()}, {os.cpu_count()} cores, numpy {np.__version__}, commit {git_revision()}")
    print(f"one at a time: {1e3 * per_run:.2f} ms a run ({sample.size} of the runs)")
    ratios = []
    for label, seconds in (("one thread", batched), (f"{given.threads} threads", spread)):
        ratios.append(per_run * len(seeds) / seconds)
        print(f"batched, {label}: {1e3 * seconds / len(seeds):.2f} ms a run, {ratios[-1]:.1f} times faster")
    print(f"largest relative difference of the parameters: {difference:.1e}")
    return int(max(ratios) < 10.0 or difference > 1e-12)


if __name__ == "__main__":
    sys.exit(main())
