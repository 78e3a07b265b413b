"""Preferences by the name of a file, of a folder that `datasets` saved, or of a dataset on the hub."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from geometry.errors import nearest_name
from llm_backend.data.errors import DataError, import_extra
from llm_backend.data.hh import MARKER, hh_from_records
from llm_backend.data.mmlu_pro import COLUMNS, mmlu_pairs, questions_from_records
from llm_backend.data.pairs import pairs_from_records
from llm_backend.data.records import READERS, Record, read_records
from llm_backend.data.rows import Preferences
from llm_backend.hub import HubNameError, offline


def load_preferences(
    source: str | Path, *, format: str = "auto", split: str | None = None, **options: Any
) -> Preferences:
    """Preferences from a local file (.jsonl, .json, .csv, .parquet, .gz of them), a folder of ``save_to_disk``, or,
    where no such path exists, a dataset of the hub.

    ``format`` is one of ``FORMATS``, or ``auto``: decided by the columns of the first record. ``split`` is for folders
    with splits and for the hub (there also 'train[:1000]'); 'train' where none is given. ``options`` are
    those of the format's reader (``pairs_from_records``, ``hh_from_records``, ``mmlu_pairs``).
    Raises: DataError for a source that is not there or damaged, an unknown format, missing columns, or a bad row.
    """
    if format != "auto" and format not in FORMATS:
        raise DataError(f"unknown format {format!r}.{nearest_name(format, FORMATS)} Known: auto, {', '.join(FORMATS)}")
    records = load_records(source, split=split, strict=True)
    reader = FORMATS[detect(records[0]) if format == "auto" else format]
    try:
        return reader(records, str(source), **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        name, known = str(error).rpartition("argument ")[2], list(inspect.signature(reader).parameters)[2:]
        told = f"it takes {', '.join(known)}" if known and known != ["options"] else "leave it out"
        raise DataError(f"{source}: this format has no option {name}; {told}") from None


def load_records(source: str | Path, *, split: str | None = None, strict: bool = False) -> list[Record]:
    """The records of a source, as ``load_preferences`` finds them; ``strict`` refuses a split of what has none."""
    path = Path(source).expanduser()
    if path.is_dir():
        return _from_folder(path, split, strict)
    if path.is_file() or _looks_like_a_path(str(source)):
        if strict and split is not None:
            raise DataError(f"{source} is a file, and a file has no splits; leave split {split!r} out")
        return read_records(path)
    return _from_hub(str(source), split or "train")


def detect(record: Record) -> str:
    """Which format a record is of: 'mmlu_pro' for questions with options, 'hh' for dialogues, else 'pairs'."""
    if set(COLUMNS) <= set(record):
        return "mmlu_pro"
    texts = [record.get(name) for name in ("chosen", "rejected")]
    dialogues = all(isinstance(text, str) and "\n\nHuman:" in text and MARKER in text for text in texts)
    return "hh" if dialogues and "prompt" not in record else "pairs"


def _mmlu(records: Sequence[Record], where: str, **options: Any) -> Preferences:
    return mmlu_pairs(questions_from_records(records, where), where, **options)


FORMATS: dict[str, Callable[..., Preferences]] = {
    "pairs": pairs_from_records,
    "hh": hh_from_records,
    "mmlu_pro": _mmlu,
}


def _looks_like_a_path(source: str) -> bool:
    name = source.removesuffix(".gz")
    return Path(name).suffix in READERS or source.startswith((".", "/", "~", "\\")) or source.count("/") > 1


def _from_folder(path: Path, split: str | None, strict: bool) -> list[Record]:
    datasets = import_extra("datasets", f"reading the folder {path}")
    try:
        found = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no folder that datasets saved whole ({_short(error)}); name a file in it?"
        ) from None
    if isinstance(found, datasets.DatasetDict):
        if (split or "train") not in found:
            raise DataError(f"{path} has no split {split or 'train'!r}; it has {', '.join(found)}")
        found = found[split or "train"]
    elif strict and split is not None:
        raise DataError(f"{path} is one dataset without splits; leave split {split!r} out")
    return _listed(found, str(path))


def _from_hub(name: str, split: str) -> list[Record]:
    datasets = import_extra("datasets", f"loading {name} (there is no such file or folder)")
    try:
        if not (Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___")).is_dir():  # it is not here yet
            offline(name, kind="dataset")
        found = datasets.load_dataset(name, split=split)
    except HubNameError as problem:
        raise DataError(
            f"there is no file or folder {name}, and it cannot be loaded from the hub either: {problem}"
        ) from None
    except Exception as error:  # the hub, the network and the builders each raise their own kinds
        raise DataError(
            f"there is no file or folder {name}, and it cannot be loaded from the hub either: {_short(error)}"
        ) from None
    return _listed(found, name)


def _listed(dataset: Any, where: str) -> list[Record]:
    records = list(dataset)
    if not records:
        raise DataError(f"{where} has no records")
    return records


def _short(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]
