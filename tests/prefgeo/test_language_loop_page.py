"""The page on loops of language models: its recipe is good, and it names every key of a loop's sections."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from prefgeo.language.loop_spec import (
    RANKINGS,
    GenerationSpec,
    PairingSpec,
    PromptsSpec,
    RankingSpec,
    SourceModel,
    SourcesSpec,
)
from prefgeo.language.recipe import load_language_recipe

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "lm_loops.md").read_text(encoding="utf-8")
SECTIONS = (PromptsSpec, GenerationSpec, RankingSpec, PairingSpec, SourcesSpec, SourceModel, *RANKINGS.values())


def test_the_recipe_is_good(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    (tmp_path / "mine.yaml").write_text(example, encoding="utf-8")
    recipe, _ = load_language_recipe(tmp_path / "mine.yaml")
    assert recipe.algorithm is not None and recipe.pairing.first_round == "data"


@pytest.mark.parametrize("name", sorted({*RANKINGS, *(key for each in SECTIONS for key in each.model_fields)}))
def test_every_key_is_on_the_page(name: str) -> None:
    assert re.search(rf"`(?:\w+: )?{re.escape(name)}(?:: \w+)?`", PAGE), name
