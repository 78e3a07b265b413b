"""A name that leads nowhere is refused at once: asked of the hub once, where loaders would ask for minutes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import huggingface_hub
import transformers
from huggingface_hub import constants, errors

from llm_backend import hub
from llm_backend.data import DataError, load_preferences
from llm_backend.errors import ModelError
from llm_backend.hub import HubNameError, offline
from llm_backend.models import load_model
from llm_backend.tokenizers import load_tokenizer


class Hub:
    """Stands in for the hub and its cache; ``asked`` are the addresses that were asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.answer: BaseException | None = None
        self.cached: set[str] = set()
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", self.metadata)
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", self.cache)

    def metadata(self, url: str, *, timeout: float) -> None:
        assert timeout <= 5.0
        self.asked.append(url)
        if self.answer is not None:
            raise self.answer

    def cache(self, name: str, file: str, *, repo_type: str) -> str | None:
        return "file" if name in self.cached else None


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub._asked.cache_clear()
    yield Hub(monkeypatch)
    hub._asked.cache_clear()


def http_error(kind: Any) -> BaseException:
    found: BaseException = kind.__new__(kind)
    return found


def test_a_hub_that_cannot_be_reached_is_asked_once(world: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        pytest.fail("a loader was called, which tries for minutes")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", load)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", load)
    world.answer = ConnectionError("no network")
    reason = (
        "there is no such folder, the cache has none, and the hub cannot be reached (ConnectionError); check the "
        "spelling, or give a folder"
    )
    with pytest.raises(HubNameError) as plain:
        offline("owner/name")
    assert str(plain.value) == reason
    with pytest.raises(DataError) as tokenizer:
        load_tokenizer("owner/name")
    expected = f"there is no tokenizer 'owner/name', neither as a folder nor on the hub: {reason}"
    assert str(tokenizer.value) == expected
    with pytest.raises(ModelError, match=r"no causal LM can be loaded from 'owner/name': there is no such folder"):
        load_model("owner/name")
    assert world.asked == ["https://huggingface.co/owner/name/resolve/main/config.json"] * 3
    with pytest.raises(DataError, match=r"no file or folder owner/rows, .* hub either: there is no such folder"):
        load_preferences("owner/rows")


def test_the_cache_is_used_where_the_hub_cannot_be_reached(world: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    world.answer, world.cached = ConnectionError(), {"owner/name"}
    assert offline("owner/name") is True
    told: list[Any] = []
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **options: told.append(options))
    load_tokenizer("owner/name")
    assert told == [{"local_files_only": True}]
    assert len(world.asked) == 1  # what was found is remembered


def test_what_the_hub_answers(world: Hub) -> None:
    assert offline("owner/name") is False
    world.answer = http_error(errors.RepositoryNotFoundError)
    with pytest.raises(HubNameError, match=r"the hub has no model of this name for you; check the spelling, .* log in"):
        offline("owner/nmae")
    for kind in (errors.GatedRepoError, errors.RemoteEntryNotFoundError, errors.RevisionNotFoundError):
        hub._asked.cache_clear()
        world.answer = http_error(kind)
        assert offline("owner/name") is False  # the loader says what is to be done


def test_offline_mode_asks_nobody(world: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "is_offline_mode", lambda: True)
    world.cached = {"owner/known"}
    assert offline("owner/known") is True
    with pytest.raises(HubNameError, match=r"the cache has none, and HF_HUB_OFFLINE is set; check the"):
        offline("owner/name")
    assert not world.asked


def test_folders_and_names_of_no_possible_form_are_not_asked_for(world: Hub, tmp_path: Path) -> None:
    assert offline(tmp_path) is False
    for name in ("/no/such/folder", "../elsewhere", "two words", str(tmp_path / "absent")):
        with pytest.raises(HubNameError, match=r"there is no such folder, and the hub has no names of this form"):
            offline(name)
    assert not world.asked
