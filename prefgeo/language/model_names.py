"""What a recipe names as models and tokenizers: found beside the recipe, or known to be nowhere before any work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm_backend.errors import BackendError
from llm_backend.hub import HubNameError, offline
from prefgeo.language.data import find_source
from prefgeo.language.recipe import LanguageRecipe
from prefgeo.yaml_reading import Fault, Path_

MODEL, TOKENIZER, REFERENCE = ("model", "name"), ("tokenizer", "name"), ("reference", "path")


def with_local_names(recipe: LanguageRecipe, home: Path) -> LanguageRecipe:
    """The recipe with its model, tokenizer and reference named by their folders in ``home``, the recipe's own folder,
    where such folders are; another name is left as it stands, for the hub or the current folder."""

    def local(name: str) -> str:
        folder = home / Path(name).expanduser()
        return str(folder) if folder.is_dir() else name

    model, tokenizer, reference = recipe.model, recipe.tokenizer, recipe.reference
    if model.sizes is None:
        model = model.model_copy(update={"name": local(model.name)})
    if tokenizer.name not in ("model", "embedded"):
        tokenizer = tokenizer.model_copy(update={"name": local(tokenizer.name)})
    if reference.path is not None:
        reference = reference.model_copy(update={"path": local(str(reference.path))})
    return recipe.model_copy(update={"model": model, "tokenizer": tokenizer, "reference": reference})


def check_names(recipe: LanguageRecipe, fault: Fault, home: Path) -> None:
    """Raises ``UsageError`` with line and key for the first name that is neither a folder nor one on the hub."""
    for place, name in _names(with_local_names(recipe, home), home):
        try:
            offline(name)
        except HubNameError as problem:
            raise fault(place, f"{name!r} leads nowhere: {problem}") from None


@contextmanager
def at(fault: Fault, place: Path_) -> Iterator[None]:
    """What the torch backend refuses inside is told with the line of this key."""
    try:
        yield
    except BackendError as problem:
        raise fault(place, str(problem)) from problem


def tokenizer_place(recipe: LanguageRecipe) -> Path_:
    """The key that names the tokenizer."""
    return MODEL if recipe.tokenizer.name == "model" else TOKENIZER


def _names(recipe: LanguageRecipe, home: Path) -> Iterator[tuple[Path_, str]]:
    if recipe.model.sizes is None:
        yield MODEL, recipe.model.name
    if recipe.tokenizer.name not in ("model", "embedded"):
        yield TOKENIZER, recipe.tokenizer.name
    if recipe.reference.path is not None:
        yield REFERENCE, recipe.reference.path
    if recipe.algorithm is None:
        return
    for number, each in enumerate(recipe.sources.models if recipe.sources else ()):
        if each.path is not None:
            yield ("sources", "models", number, "path"), str(find_source(each.path, home))
    if isinstance(path := recipe.ranking.options.get("path"), str):
        yield ("ranking", "options", "path"), str(find_source(path, home))
