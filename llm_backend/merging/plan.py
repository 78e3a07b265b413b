"""What a merge will write: every tensor once, from which places it comes, and which names are only ties of others."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from llm_backend.merging.agreement import is_tied, output_dtypes
from llm_backend.merging.errors import MergeError
from llm_backend.merging.folders import ModelFolder
from llm_backend.merging.tensor_files import HashedFile, TensorPlace

HEADS = ("lm_head.weight", "embed_out.weight", "output.weight", "output_projection.weight")
LAYER = re.compile(r"\.\d+\.")  # of a name within a block, as that of an attention's output
COMPARED = 2**20  # bytes at once


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the result: its places in the inputs, in their order, and the dtype to write."""

    places: tuple[TensorPlace, ...]
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """Its name."""
        return self.places[0].name

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.places[0].shape

    @property
    def n_bytes(self) -> int:
        """Bytes to write."""
        return self.places[0].n_values * self.dtype.itemsize


def plan_tensors(folders: Sequence[ModelFolder], dtype: torch.dtype | None) -> tuple[list[TensorPlan], dict[str, str]]:
    """The tensors in the order of the first input's bytes, and the tied names that were left out, with their partner.

    Raises: MergeError for tensors that are missing somewhere, or differ in shape or dtype.
    """
    ties = find_ties(folders)
    names = [[name for name in folder.tensors if name not in ties] for folder in folders]
    for folder, own in zip(folders[1:], names[1:], strict=True):
        for (have, given), (lack, lacking) in (
            ((folders[0], names[0]), (folder, own)),
            ((folder, own), (folders[0], names[0])),
        ):
            missing = sorted(set(given) - set(lacking))
            if missing:
                raise MergeError(
                    f"{missing[0]} is in {have.tensors[missing[0]].file} but not in {lack.path}; only models with the "
                    "same tensors can be merged"
                )
    plans = []
    for name in names[0]:
        places = tuple(folder.tensors[name] for folder in folders)
        plans.append(TensorPlan(places, output_dtypes(places, dtype)))
    return plans, ties


def find_ties(folders: Sequence[ModelFolder]) -> dict[str, str]:
    """Heads that some inputs store although they are the table of the embeddings: name -> the partner that stays.

    Raises: MergeError where config.json ties a head, but the stored values say otherwise.
    """
    names = {name for folder in folders for name in folder.tensors}
    heads = {name for name in names if name.endswith(HEADS) and not LAYER.search(name)}
    if not heads or folders[0].is_adapter or not all(is_tied(folder) for folder in folders):
        return {}
    common = set.intersection(*(set(folder.tensors) for folder in folders))
    ties = {}
    for head in sorted(heads):
        storing = [folder for folder in folders if head in folder.tensors]
        shape = storing[0].tensors[head].shape
        tables = [name for name in sorted(common - heads) if storing[0].tensors[name].shape == shape]
        partner = next((name for name in tables if all(_equal(each.tensors, head, name) for each in storing)), None)
        if partner is None:
            raise MergeError(
                f"{storing[0].path / 'config.json'} says that head and embeddings are one table, but {head} in "
                f"{storing[0].tensors[head].file} equals no table of its shape; save the model again as it should be"
            )
        ties[head] = partner
    return ties


def _equal(tensors: Mapping[str, TensorPlace], one: str, other: str) -> bool:
    a, b = tensors[one], tensors[other]
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    first, second = bytearray(COMPARED), bytearray(COMPARED)
    with HashedFile(a.file, hashed=False) as left, HashedFile(b.file, hashed=False) as right:
        for start in range(0, a.n_bytes, COMPARED):
            size = min(COMPARED, a.n_bytes - start)
            left.read_into(memoryview(first)[:size], a.begin + start)
            right.read_into(memoryview(second)[:size], b.begin + start)
            if first[:size] != second[:size]:
                return False
    return True
