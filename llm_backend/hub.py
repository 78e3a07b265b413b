"""Whether a name leads to a model: asked once, with little patience, where the loaders would try for minutes."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Literal

from llm_backend.errors import BackendError

PATIENCE = 5.0  # seconds for the hub to answer
ADVICE = "check the spelling, or give a folder"
Kind = Literal["model", "dataset"]


class HubNameError(BackendError):
    """Why a name leads nowhere, without the name itself."""


def offline(name: str | os.PathLike[str], *, kind: Kind = "model", revision: str | None = None) -> bool:
    """Whether a loader should be told to stay away from the hub: this machine does not reach it, and the cache has
    something of this name. False for a folder.

    Raises: HubNameError for a name that is neither a folder, nor in the cache, nor on a hub that answers.
    """
    return False if Path(name).is_dir() else _asked(os.fspath(name), kind, revision)


@lru_cache(maxsize=64)
def _asked(name: str, kind: Kind, revision: str | None) -> bool:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.constants import is_offline_mode
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
    )

    file = "config.json" if kind == "model" else "README.md"
    try:
        files = (file, "tokenizer_config.json")
        cached = any(isinstance(try_to_load_from_cache(name, each, repo_type=kind), str) for each in files)
        url = hf_hub_url(name, file, repo_type=kind, revision=revision)
    except HFValidationError:
        raise HubNameError(f"there is no such folder, and the hub has no names of this form; {ADVICE}") from None
    if is_offline_mode() and not cached:
        raise HubNameError(f"there is no such folder, the cache has none, and HF_HUB_OFFLINE is set; {ADVICE}")
    if is_offline_mode():
        return True
    try:
        get_hf_file_metadata(url, timeout=PATIENCE)
    except EntryNotFoundError:
        pass  # the repository is there; what it lacks, the loader says
    except GatedRepoError:
        pass  # the loader says how to ask for access
    except RepositoryNotFoundError:
        raise HubNameError(
            f"there is no such folder, and the hub has no {kind} of this name for you; {ADVICE}, or log in for a "
            "private one"
        ) from None
    except HfHubHTTPError:
        pass  # it answers: gated, overloaded, no such revision, which the loader says
    except Exception as error:  # what the network raises depends on the version of the client
        if cached:
            return True
        raise HubNameError(
            f"there is no such folder, the cache has none, and the hub cannot be reached ({type(error).__name__}); "
            f"{ADVICE}"
        ) from None
    return False
