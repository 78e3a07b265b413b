"""The folder of a result: written under another name, then renamed; whatever goes wrong, nothing is left behind."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from llm_backend.merging.errors import MergeError

RESULT = ("config.json", "adapter_config.json", "merge.json")  # one of these is in every folder that may be replaced
OLD = ".old"  # the end of the name of a result while another takes its place


def check_target(out: Path, inputs: Sequence[Path], *, overwrite: bool) -> None:
    """Raises MergeError where ``out`` exists (unless ``overwrite``, and it holds a model), or overlaps an input."""
    place = out.resolve()
    for each in inputs:
        source = each.resolve()
        if place == source or source in place.parents or place in source.parents:
            raise MergeError(f"{out} and the input {each} overlap; choose another folder for the result")
    if out.exists():
        if not out.is_dir():
            raise MergeError(f"{out} is a file; give the name of a new folder")
        if not overwrite:
            raise MergeError(f"{out} exists and is left as it is; choose another folder, or overwrite it (--force)")
        if any(out.iterdir()) and not any((out / name).is_file() for name in RESULT):
            raise MergeError(f"{out} holds no model, so it is not overwritten; choose another folder")


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside ``out``, which takes its name and place when the block ends well.

    An older ``out`` stays until then, and comes back where the last step fails. What processes that were killed left of
    the same result is removed first.
    Raises: MergeError where the disk is full or the place cannot be written to.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(out)
        part = out.with_name(f".{out.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
        part.mkdir()
    except OSError as problem:
        raise MergeError(f"cannot write {out}: {problem.strerror or problem}") from None
    lock = os.open(part, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)  # says that somebody is writing here; it goes when the process ends, however
    try:
        yield part
        for path in part.iterdir():
            _sync(path)
        _replace(part, out)
        _sync(out.parent)
    except OSError as problem:
        full = problem.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else str(problem.strerror or problem)
        raise MergeError(f"cannot write {out}: {reason}; nothing was left behind") from None
    finally:
        os.close(lock)
        shutil.rmtree(part, ignore_errors=True)  # already renamed where all went well


def _replace(part: Path, out: Path) -> None:
    old = out.with_name(f"{part.name}{OLD}")
    if out.exists():
        out.rename(old)
    try:
        part.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove_abandoned(out: Path) -> None:
    for old in out.parent.glob(f".{out.name}.*.part{OLD}"):
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:  # the kill came between the two steps of replacing it
            old.rename(out)
    for part in out.parent.glob(f".{out.name}.*.part"):
        with contextlib.suppress(OSError):
            lock = os.open(part, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(part, ignore_errors=True)
            finally:
                os.close(lock)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
