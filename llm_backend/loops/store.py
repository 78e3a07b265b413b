"""The policies of a loop on disk: model folders under the digest of their content, whole or not there."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from geometry.safe_write import write_safely
from llm_backend.evaluation.loading import without_bars
from llm_backend.log_probs import unwrap
from llm_backend.loops.errors import StoreError
from llm_backend.loops.policies import CONFIG, TOKENIZER_FILES, StoredPolicy, folder_digest
from llm_backend.models import load_model
from llm_backend.tokenizers import load_tokenizer

POLICIES, DROPPED, UNFINISHED = "policies", "dropped", "unfinished"
IN_MEMORY = 2  # a policy, and who it is compared with
HALF = ("bfloat16", "float16")


class PolicyStore:
    """Model folders in ``root/policies``, and beside them what else a loop must find again (``remember``).

    A folder's name is the SHA-256 of its tensors, configuration and tokenizer: equal policies are stored once, and a
    policy that was changed or damaged is refused when it is opened. One process writes to a store at a time. Every
    policy takes its weights' size on disk, in ``dtype``; ``size`` says how much that is, ``drop`` frees it. At most two
    models are in memory at once.
    """

    def __init__(
        self, root: str | Path, *, dtype: str = "float32", attention: str = "sdpa", device: str = "cpu"
    ) -> None:
        self.root, self.dtype, self.attention, self.device = Path(root), dtype, attention, device
        (self.root / POLICIES).mkdir(parents=True, exist_ok=True)
        for rest in (self.root / POLICIES).glob(f"{UNFINISHED}-*"):  # of a process that was killed while it wrote
            shutil.rmtree(rest, ignore_errors=True)
        self._intact: set[str] = set()
        self._models: OrderedDict[str, Any] = OrderedDict()
        self._tokenizers: dict[str, Any] = {}

    # -- policies -----------------------------------------------------------------------------------------------

    def add(self, model: Any, tokenizer: Any) -> StoredPolicy:
        """Store a model as it is now; adapters are merged into its weights, in place.

        ``tokenizer`` is one in memory, or the stored policy that the model was trained from: then tokenizer and
        configuration are copied from it byte by byte, and do not keep what training set for itself.
        Raises: StoreError for adapters on weights in half precision, where most of the sum would be rounded away.
        """
        if hasattr(model, "merge_and_unload"):
            if unwrap(model).dtype in (torch.bfloat16, torch.float16):
                raise StoreError(
                    "adapters cannot be added to weights in half precision, which would round their sum away; store "
                    "policies with dtype float32 and train with precision bfloat16"
                )
            model = model.merge_and_unload()
        part = self.unfinished()
        with without_bars():
            model.save_pretrained(part)
        if isinstance(tokenizer, StoredPolicy):
            copy_documents(tokenizer.path, part)
        else:
            tokenizer.save_pretrained(part)
        return self.adopt(part)

    def adopt(self, folder: Path) -> StoredPolicy:
        """Take a finished model folder over, by renaming it; where its policy is stored already, it is removed."""
        digest = folder_digest(folder)
        target = self._folder(digest)
        if target.exists():
            shutil.rmtree(folder)
        else:
            folder.rename(target)
            (self.root / DROPPED / digest).unlink(missing_ok=True)
        self._intact.add(digest)
        return StoredPolicy(digest, target)

    def unfinished(self) -> Path:
        """An empty place for a folder that is to be adopted."""
        place = self.root / POLICIES / f"{UNFINISHED}-policy"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        return place

    def get(self, digest: str) -> StoredPolicy:
        """A stored policy; also one that was dropped, which can be named but not opened.

        Raises: StoreError where it is missing, or not what it was.
        """
        policy = StoredPolicy(digest, self._folder(digest))
        if not self.was_dropped(digest):
            self.check(policy)
        return policy

    def check(self, policy: StoredPolicy) -> None:
        """Raises StoreError for a policy that is missing, dropped or damaged; reads it once in a process."""
        if self.was_dropped(policy.digest):
            raise StoreError(
                f"policy {policy.digest[:12]} was dropped from {self.root} to save space; keep all policies to use it"
            )
        if not policy.path.is_dir():
            raise StoreError(
                f"{self.root} has no policy {policy.digest[:12]}: a checkpoint of the trajectory is missing; restore "
                f"its folder {policy.path.name} in {POLICIES}, or start again in an empty folder"
            )
        if policy.digest in self._intact:
            return
        if folder_digest(policy.path) != policy.digest:
            raise StoreError(
                f"policy {policy.digest[:12]} in {self.root} is damaged (its hash has changed); restore its folder "
                f"{policy.path.name} in {POLICIES}, or start again in an empty folder"
            )
        self._intact.add(policy.digest)

    def has(self, digest: str) -> bool:
        """Whether the policy's folder is there; it is read when it is opened."""
        return self._folder(digest).is_dir()

    def was_dropped(self, digest: str) -> bool:
        """Whether the policy was removed on purpose."""
        return (self.root / DROPPED / digest).is_file()

    def drop(self, policy: StoredPolicy) -> None:
        """Remove a policy that no later stage opens, and remember that this was meant."""
        self._models.pop(policy.digest, None)
        (self.root / DROPPED).mkdir(exist_ok=True)
        (self.root / DROPPED / policy.digest).touch()
        shutil.rmtree(policy.path, ignore_errors=True)
        self._intact.discard(policy.digest)

    def keep_only(self, policies: Iterable[StoredPolicy]) -> int:
        """Drop all other policies, as after a run whose last one is all that is wanted; the bytes that this frees."""
        before, kept = self.size(), {policy.digest for policy in policies}
        for folder in list((self.root / POLICIES).iterdir()):
            if len(folder.name) == 64 and folder.name not in kept:
                self.drop(StoredPolicy(folder.name, folder))
        return before - self.size()

    def size(self) -> int:
        """Bytes of all policies on disk."""
        return sum(file.stat().st_size for file in (self.root / POLICIES).rglob("*") if file.is_file())

    def _folder(self, digest: str) -> Path:
        return self.root / POLICIES / digest

    # -- in memory ----------------------------------------------------------------------------------------------

    def load(self, policy: StoredPolicy) -> Any:
        """A model of the caller's own, to train: it is not kept here."""
        self.check(policy)
        with without_bars():
            found: Any = load_model(policy.path, dtype=self.dtype, attention=self.attention)
        return found.to(self.device)

    def model(self, policy: StoredPolicy) -> Any:
        """The model, in evaluation mode and not to be changed; the one that was used longest ago goes."""
        if policy.digest in self._models:
            self._models.move_to_end(policy.digest)
        else:
            while len(self._models) >= IN_MEMORY:
                self._models.popitem(last=False)
            self._models[policy.digest] = self.load(policy).eval().requires_grad_(False)
        return self._models[policy.digest]

    def release(self) -> None:
        """Forget the models in memory."""
        self._models.clear()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def tokenizer(self, policy: StoredPolicy) -> Any:
        """The policy's tokenizer."""
        if policy.digest not in self._tokenizers:
            self.check(policy)
            found: Any = load_tokenizer(policy.path)
            if found.pad_token_id is None:
                found.pad_token = found.eos_token  # padding is told by its place, so EOS is still scored
            self._tokenizers[policy.digest] = found
        return self._tokenizers[policy.digest]

    # -- what was found out ---------------------------------------------------------------------------------------

    def recall(self, kind: str, key: str) -> dict[str, Any] | None:
        """What was remembered, or None. Raises StoreError for a damaged file."""
        path = self._note(kind, key)
        if not path.is_file():
            return None
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as problem:
            raise StoreError(f"{path} is damaged ({problem}); delete it, and it is found again") from None
        return values

    def remember(self, kind: str, key: str, values: Mapping[str, Any]) -> None:
        """Keep the outcome of a piece of work under the digest of all that it depends on."""
        path = self._note(kind, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps(dict(values), indent=1).encode()
        write_safely(path, lambda stream: _write(stream, content), overwrite=True)

    def _note(self, kind: str, key: str) -> Path:
        return self.root / kind / f"{key}.json"


def key_of(**parts: Any) -> str:
    """SHA-256 of plain values by name: what a piece of work depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def copy_documents(source: Path, target: Path) -> None:
    """Configuration and tokenizer of a model folder, byte by byte."""
    for name in (CONFIG, "generation_config.json", *TOKENIZER_FILES):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _write(stream: Any, content: bytes) -> None:
    stream.write(content)
