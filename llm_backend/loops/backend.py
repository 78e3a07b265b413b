"""The backend of causal LMs: the loops that run on finite policies run on language models, unchanged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_backend.loops.errors import LoopError
from llm_backend.loops.fitting import Fit
from llm_backend.loops.policies import StoredPolicy
from llm_backend.loops.rows import LoopRows, loop_rows
from llm_backend.loops.sources import Draw, RoundSource, one_number
from llm_backend.loops.store import POLICIES, PolicyStore, key_of
from llm_backend.loops.training import LoopTraining, Steps
from llm_backend.merging import merge_folders
from llm_backend.merging.margins import MergedMargins
from llm_backend.merging.weighted_sum import checked_weights
from llm_backend.token_options import TokenOptions
from objectives import Objective
from objectives.fitting import Monitor, Plan

Arrays = Mapping[str, np.ndarray]
Evaluate = Callable[[Any], Mapping[str, float]]
MERGES = "merges"
# RMS norms of Llama, Qwen and Mistral compute in float32 whatever the weights are: margins are then good to some 1e-8
WEIGHT_TOLERANCE = {"float64": 1e-7, "float32": 1e-4}


class LanguageBackend:
    """``prefgeo.backend.Backend`` on causal LMs: a policy is a model folder in a store, data are rows of token ids.

    There is one run, so arrays are (1,). What a round makes (prompts, responses, scores, merges, trained policies) is
    kept in the store under the digest of all it depends on: whoever asks again, as a run that was killed does, gets
    it without any work. ``evaluator`` gives the metrics of a model, as plain numbers.
    """

    n_runs = 1

    def __init__(
        self,
        store: PolicyStore,
        base: StoredPolicy,
        source: RoundSource,
        training: LoopTraining,
        evaluator: Evaluate,
        *,
        tokens: TokenOptions | None = None,
        seed: int = 0,
    ) -> None:
        self.store, self.base, self.source, self.training = store, base, source, training
        self.evaluator, self.tokens, self.seed = evaluator, tokens or TokenOptions(), seed
        self._margins: tuple[list[str], LoopRows, MergedMargins] | None = None
        self._metrics: dict[str, dict[str, np.ndarray]] = {}
        store.check(base)

    @property
    def weight_tolerance(self) -> float:
        """The KKT residual that learned merge weights can reach in the precision of the merged margins."""
        return WEIGHT_TOLERANCE[self.training.merge_precision]

    # -- policies -----------------------------------------------------------------------------------------------

    def load(self, arrays: Arrays | None = None) -> StoredPolicy:
        """The base policy, or one that ``dump`` wrote. Raises StoreError where the store does not have it."""
        if arrays is None:
            return self.base
        digest = np.asarray(arrays.get("sha256", ()))
        if digest.shape != (32,) or digest.dtype != np.uint8:
            raise LoopError("a policy of a language model is known by 'sha256', 32 bytes; these arrays are of another")
        return self.store.get(digest.tobytes().hex())

    def dump(self, policy: StoredPolicy) -> dict[str, np.ndarray]:
        """The policy's digest; its weights stay in the store."""
        return {"sha256": np.frombuffer(bytes.fromhex(policy.digest), dtype=np.uint8).copy()}

    def merge(self, policies: Sequence[StoredPolicy], weights: Any) -> StoredPolicy:
        """sum_t w_t theta_t, streamed from file to file; weights (k,) or (1, k) with sum 1.

        Equal policies count once, and policies of weight 0 not at all; where one is left, it is the result itself.
        Raises: MergeError for models that do not fit together, and for weights that do not sum to 1.
        """
        shares: dict[str, float] = {}
        for policy, share in zip(policies, checked_shares(weights, len(policies)), strict=True):
            shares[policy.digest] = shares.get(policy.digest, 0.0) + share
        used = {digest: share for digest, share in shares.items() if share != 0.0}
        if len(used) == 1:
            return self.store.get(next(iter(used)))
        key = key_of(shares=used, order=list(used), dtype=self.store.dtype)
        known = self.store.recall(MERGES, key)
        if known is not None and (self.store.has(known["policy"]) or self.store.was_dropped(known["policy"])):
            return self.store.get(known["policy"])
        mine = {policy.digest: policy for policy in policies}
        for digest in used:
            self.store.check(mine[digest])
        out = self._merged([mine[digest].path for digest in used], list(used.values()))
        merged = self.store.adopt(out)
        self.store.remember(MERGES, key, {"policy": merged.digest, "shares": used})
        return merged

    def _merged(self, folders: Sequence[Path], shares: Sequence[float]) -> Path:
        out = self.store.root / POLICIES / "unfinished-merge"
        merge_folders(folders, shares, out, overwrite=True, hashed=False)
        return out

    def merged_margins(
        self, policies: Sequence[StoredPolicy], data: LoopRows, weights: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """log pi_a(y_w) - log pi_a(y_l) of the merged model (1, n), its slopes in the shares (1, n, k), and 1 / n.

        In ``merge_precision``. Models that together are small stay in memory between two calls; others are read again.
        Raises: LoopError for weights that are not k numbers; MergeError for models that do not fit together.
        """
        shares = np.asarray(weights, dtype=np.float64)
        if shares.shape not in ((len(policies),), (1, len(policies))):
            raise LoopError(f"a merge of {len(policies)} policies needs {len(policies)} shares, got {shares.shape}")
        margins, slopes = self._seen_by_merge(policies, data)(shares.reshape(-1))
        return margins[None], slopes[None], np.full((1, data.n_rows), 1.0 / data.n_rows)

    def _seen_by_merge(self, policies: Sequence[StoredPolicy], data: LoopRows) -> MergedMargins:
        names = [policy.digest for policy in policies]
        if self._margins is None or self._margins[0] != names or self._margins[1] is not data:
            self.store.release()
            for policy in policies:
                self.store.check(policy)
            sizes = [sum(file.stat().st_size for file in policy.path.glob("*.safetensors")) for policy in policies]
            small = sum(sizes) <= self.training.merge_memory
            made = MergedMargins(
                [self.store.load(policy) if small else policy.path for policy in policies], data.rows,
                dtype=self.training.merge_precision, device=self.store.device,
                pad_id=int(self.store.tokenizer(self.base).pad_token_id),
            )  # fmt: skip
            self._margins = (names, data, made)
        return self._margins[2]

    # -- data -----------------------------------------------------------------------------------------------------

    def preferences(
        self,
        policy: StoredPolicy,
        *,
        kind: str,
        flip: float,
        round_index: int,
        split: str = "train",
        part: tuple[int, int] = (0, 1),
    ) -> LoopRows:
        """Rows of the source, tokenised; responses and scores that are in the store are not made again."""
        draw = Draw(
            policy=policy, kind=kind, flip=one_number(flip, "the flip probability"), round_index=round_index,
            split=split, part=part, seed=self.seed, tokens=self.tokens,
        )  # fmt: skip
        return loop_rows(self.source.rows(self.store, draw), self.store.tokenizer(self.base), self.tokens)

    def counts(self, data: LoopRows) -> dict[str, np.ndarray]:
        """Rows kept and flipped, and what was left out, by name, each (1,)."""
        return data.counts()

    # -- training and evaluation ----------------------------------------------------------------------------------

    def fit(
        self,
        start: StoredPolicy,
        reference: StoredPolicy,
        data: LoopRows,
        objective: Objective,
        *,
        plan: Plan,
        monitor: Monitor | None = None,
    ) -> tuple[StoredPolicy, dict[str, np.ndarray]]:
        """The policy that the plan trains, and its final ``loss`` on the data, (1,).

        "adam" is AdamW (no decay of biases and norms), "gd" gradient descent. The objective "nll" is supervised
        fine-tuning, whose loss is a mean over tokens. Snapshots of the monitor point to whole checkpoints in the store.
        """
        steps, self._margins = Steps.of(plan, data), None
        return Fit(self.store, start, reference, data, objective, steps, self.training, self.seed).run(monitor)

    def evaluate(self, policy: StoredPolicy) -> dict[str, np.ndarray]:
        """What the evaluator finds, each (1,); found once for each policy."""
        if policy.digest not in self._metrics:
            found = self.evaluator(self.store.model(policy))
            self._metrics[policy.digest] = {name: np.array([one_number(v, name)]) for name, v in found.items()}
        return dict(self._metrics[policy.digest])


def checked_shares(weights: Any, k: int) -> tuple[float, ...]:
    """The shares of a merge, (k,) or (1, k). Raises: MergeError, LoopError for another shape or none."""
    shares = np.asarray(weights, dtype=np.float64)
    if k == 0:
        raise LoopError("a merge needs at least one policy, got none")
    if shares.shape not in ((k,), (1, k)):
        raise LoopError(f"a merge of {k} policies needs {k} shares, got shape {shares.shape}")
    return checked_weights(shares.reshape(-1).tolist(), k, extrapolate=True)
