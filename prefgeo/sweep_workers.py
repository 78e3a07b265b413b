"""Where the cells of a sweep are computed: here, in processes of this machine, or on a Dask cluster."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from prefgeo.algorithms.data_source import DataSource
from prefgeo.algorithms.outcome import LoopOutcome
from prefgeo.algorithms.single_round import Outcome, single_round
from prefgeo.endings import end_with_parent
from prefgeo.errors import UsageError
from prefgeo.language.cells import train_language
from prefgeo.preparation import make_backend, prepare
from prefgeo.recipes import check_recipe
from prefgeo.yaml_reading import Path_

Payload = Mapping[str, Any]
"""``key``, ``recipe`` (plain values), ``folder`` (of its file names), ``backend``, ``device`` and ``seconds`` between
checkpoints; of a language model also ``out``, the folder of its run, and ``start_from``, that of another."""
Found = tuple[str, dict[str, Any]]
"""The key of a cell, and its result."""
Pool = Callable[[Sequence[Payload]], Iterator[Found]]
"""Computes cells, and gives each as it comes."""
PATIENCE = 10  # seconds for a scheduler to answer


def run_cell(payload: Payload) -> dict[str, Any]:
    """Train all seeds of one cell, or one of a language model. What goes wrong is part of the result: its ``status`` is
    done or failed."""
    begun = time.perf_counter()
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # a loss that is not finite is reported below
            found = _train(payload)
        return {"status": "done", **found, "seconds": time.perf_counter() - begun}
    except Exception as error:  # one bad cell must not stop the others
        named = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        return {"status": "failed", "error": f"{named}{' '.join(str(error).split())}"}


@contextmanager
def workers(jobs: int, cluster: str | None) -> Iterator[Pool]:
    """What computes cells: ``jobs`` processes of this machine (1: this process), or a cluster's workers.

    Raises: ``UsageError`` where dask is not installed, or nobody answers at the cluster's address.
    """
    if cluster is None:
        yield partial(_run_locally, jobs)
        return
    client = _connect(cluster)
    try:
        yield partial(_run_on_cluster, client)
    finally:
        client.close()


def _run_locally(jobs: int, payloads: Sequence[Payload]) -> Iterator[Found]:
    if jobs == 1:
        yield from map(_keyed, payloads)
        return
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    started = {"initializer": end_with_parent, "initargs": (os.getpid(),)}
    try:
        yield from Parallel(n_jobs=jobs, return_as="generator_unordered", **started)(
            delayed(_keyed)(each) for each in payloads
        )
    except TerminatedWorkerError:
        raise UsageError(
            "a worker process died, perhaps for lack of memory; finished cells are kept: continue with --resume and "
            "fewer --jobs"
        ) from None


def _run_on_cluster(client: Any, payloads: Sequence[Payload]) -> Iterator[Found]:
    from distributed import as_completed

    futures = {
        client.submit(run_cell, dict(each), key=f"prefgeo-{each['key']}", pure=False): each["key"] for each in payloads
    }
    for future in as_completed(list(futures), loop=client.loop):
        yield futures[future], _outcome(future)


def _train(payload: Payload) -> dict[str, Any]:
    if "out" in payload:
        return train_language(payload, _plain_fault)
    recipe = check_recipe(payload["recipe"], _plain_fault)
    prepared = prepare(recipe, _plain_fault, Path(payload["folder"]))
    backend = make_backend(payload["backend"], payload["device"], prepared.world.build(recipe.seeds))
    make, flip, plan = recipe.objective.make, recipe.data.flip, prepared.plan()
    outcome: Outcome[Any] | LoopOutcome[Any]
    if prepared.algorithm is None:
        outcome = single_round(backend, make(), kind=prepared.kind, flip=flip, plan=plan)
    else:
        outcome = prepared.algorithm.run(backend, make, DataSource(prepared.kind, flip), plan, None)
    return {
        part: {name: [float(value) for value in values] for name, values in metrics.items()}
        for part, metrics in (("metrics", outcome.metrics), ("base", outcome.base_metrics))
    }


def _keyed(payload: Payload) -> Found:
    return payload["key"], run_cell(payload)


def _plain_fault(place: Path_, sentence: str) -> UsageError:
    return UsageError(f"{'.'.join(str(part) for part in place)}: {sentence}")


def _connect(address: str) -> Any:
    """A client of the scheduler at the address, which has a worker at least."""
    try:
        from distributed import Client
    except ModuleNotFoundError:
        raise UsageError("--cluster needs dask, which is not installed: pip install 'prefgeo[cluster]'") from None
    if not re.fullmatch(r"(\w+://.+|[^:/]+:\d+)", address):
        raise UsageError(f"--cluster {address!r} is no address of a Dask scheduler, as in tcp://host:8786")
    try:
        client = Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"no Dask scheduler answers at {address!r} within {PATIENCE} s ({type(error).__name__}); "
            "start one (dask scheduler), or give another address"
        ) from None
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except TimeoutError:
        client.close()
        raise UsageError(f"the Dask scheduler at {address} has no workers; start some (dask worker)") from None
    return client


def _outcome(future: Any) -> dict[str, Any]:
    """A result, or what became of the worker: a cell that is lost with it may be run again."""
    if future.status == "finished":
        found: dict[str, Any] = future.result()
        return found
    error = future.exception() if future.status == "error" else None
    return {"status": "failed", "error": f"the cluster lost this cell ({error or future.status})"}
