"""Language-model recipes: what is refused, with file, line, key and a sentence; the data they lead to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefgeo.errors import UsageError
from prefgeo.language.recipe import is_language_recipe, load_language_recipe

GOOD = """name: test
model: {name: tiny, sizes: {}}
tokenizer: {name: embedded}
data: {format: world, world: {name: e3}}
sft: {learning_rate: 0.01, steps: 2}
objective: {name: dpo}
training: {learning_rate: 0.01, epochs: 1}
reference: {name: initial}
evaluate: {generations: 2}
"""
CASES = {  # replaced -> by, and what must be said
    "unknown key": ("training:", "trainng:", "line 7, trainng: unknown key 'trainng'. Did you mean 'training'?"),
    "inner key": ("{format: world,", "{formt: world,", "line 4, data.formt: unknown key 'formt'. Did you mean 'f"),
    "deep key": ("sizes: {}", "sizes: {wdth: 3}", "line 2, model.sizes.wdth: unknown key 'wdth'. Did you mean 'width'"),
    "missing": ("objective: {name: dpo}\n", "", "line 1, objective: this key is missing"),
    "no sizes": (", sizes: {}", "", "line 2, model: sizes belong to name: tiny, which needs them"),
    "sizes of a real model": ("name: tiny, s", "name: some/model, s", "line 2, model: sizes belong to name: tiny"),
    "trainable": ("sizes: {}", "sizes: {}, trainable: half", "line 2, model.trainable: must be all, last_block, or a"),
    "share": ("sizes: {}", "sizes: {}, trainable: 1.5", "model.trainable: must be all, last_block, or a share of the"),
    "two choices": ("sizes: {}", "sizes: {}, trainable: 0.5, lora: {r: 4}", "give either lora or trainable, and"),
    "tokenizer of tiny": ("name: embedded", "name: model", "line 3, tokenizer: a tiny model has no tokenizer of its"),
    "vocabulary": ("{name: embedded}", "{name: x, vocab_size: 300}", "line 3, tokenizer: vocab_size is that of name:"),
    "format": ("format: world", "format: wrld", "line 4, data.format: unknown format 'wrld'. Did you mean 'world'?"),
    "ignored": ("{format: world", "{format: hh, path: x", "line 4, data: format: hh would ignore world; leave it out"),
    "ignored path": ("{format: world", "{format: world, path: x", "format: world would ignore path; leave it out"),
    "no path": ("format: world, world: {name: e3}", "format: pairs", "format: pairs needs a path: a file, a folder"),
    "no world": (", world: {name: e3}", "", "line 4, data: format: world needs a world by name"),
    "categories": ("format: world, world: {name: e3}", "format: hh, path: x, out_of_domain: [law]", "only format: mm"),
    "duration": ("epochs: 1", "epochs: 1, steps: 2", "line 7, training: say how long to train: give either steps or"),
    "no duration": (", steps: 2", "", "line 5, sft: say how long to train: give either steps or epochs, and not both"),
    "text for number": ("0.01, steps", "1e-3, steps", "line 5, sft.learning_rate: YAML reads 1e-3 as a text; write"),
    "objective": ("name: dpo", "name: dop", "line 6, objective.name: unknown objective 'dop'. Did you mean 'dpop'?"),
    "option": ("{name: dpo}", "{name: dpo, options: {bta: 1.0}}", "line 6, objective.options: "),
    "delta": ("name: dpo", "name: auxdpo", "line 6, objective.name: auxdpo needs auxiliary variables"),
    "win rates": ("name: dpo", "name: sppo", "line 6, objective.name: sppo needs win rates"),
    "no adapter": ("name: initial", "name: adapter_off", "line 8, reference.name: adapter_off needs adapters"),
    "reference path": ("name: initial", "name: path", "line 8, reference: path belongs to name: path, which needs"),
}  # fmt: skip


def write(text: str, folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_good_one_is_good(tmp_path: Path) -> None:
    path = write(GOOD, tmp_path)
    recipe, _ = load_language_recipe(path)
    assert is_language_recipe(path) and recipe.model.trainable == "all" and recipe.seed == 0
    assert not is_language_recipe(write(GOOD.replace("model:", "world:"), tmp_path))


@pytest.mark.parametrize("name", CASES)
def test_faults_are_told_with_line_and_key(tmp_path: Path, name: str) -> None:
    before, after, sentence = CASES[name]
    assert before in GOOD
    with pytest.raises(UsageError) as caught:
        load_language_recipe(write(GOOD.replace(before, after), tmp_path))
    assert sentence in str(caught.value).replace(str(tmp_path / "recipe.yaml") + ", ", "")


# -- the data that a recipe leads to ---------------------------------------------------------------------------------


def texts(folder: Path, data: str, seed: int = 0) -> Any:
    pytest.importorskip("transformers")
    from prefgeo.language.data import load_texts

    recipe, fault = load_language_recipe(write(GOOD.replace("{format: world, world: {name: e3}}", data), folder))
    return load_texts(recipe.data, seed, fault, folder)


def test_rows_with_one_prompt_lie_on_one_side(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i % 40}", "chosen": f" a{i}", "rejected": f" b{i}"} for i in range(200)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = texts(tmp_path, "{format: pairs, path: pairs.jsonl, test_fraction: 0.3}")
    sides = {name: {row.prompt for row in part.rows} for name, part in found.splits.items()}
    assert not sides["train"] & sides["held_out"] and len(sides["train"] | sides["held_out"]) == 40
    assert 3 <= len(sides["held_out"]) <= 22  # Binomial(40, .3), far out
    assert len(found.splits["train"]) + len(found.splits["held_out"]) == 200
    assert len(found.inputs["pairs.jsonl"]) == 64
    assert texts(tmp_path, "{format: pairs, path: pairs.jsonl}", seed=1).splits != found.splits
    few = texts(tmp_path, "{format: pairs, path: pairs.jsonl, test_fraction: 0.3, rows: 7, flip: 1.0}")
    all_of_them = [row.row for row in found.splits["train"].rows]
    wanted = [all_of_them[i * len(all_of_them) // 7] for i in range(7)]
    assert [row.row for row in few.splits["train"].rows] == wanted  # not the first seven: files may be sorted
    assert len(few.splits["train"]) == 7 and all(row.flipped for row in few.splits["train"].rows)
    assert not any(row.flipped for row in few.splits["held_out"].rows)


def test_questions_out_of_domain_are_never_trained_on(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps(each) for each in questions(90)))
    found = texts(tmp_path, "{format: mmlu_pro, path: q.jsonl, out_of_domain: [law], test_fraction: 0.5}")
    kinds = {name: {row.category for row in part.rows} for name, part in found.splits.items()}
    assert kinds == {"train": {"math", "physics"}, "held_out": {"math", "physics"}, "out_of_domain": {"law"}}


def questions(n: int) -> list[dict[str, Any]]:
    kinds = ("law", "math", "physics")
    return [
        {"question_id": i, "category": kinds[i % 3], "question": f"What is {i}?", "options": [f"{i}", f"{i + 1}", "?"],
         "answer_index": 0} for i in range(n)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("{format: world, world: {name: e1}}", "line 4, data.world.name: world 'e1' has no texts"),
        ("{format: world, world: {name: e3, options: {grammar: {n_good: 0}}}}", "n_good must be a whole number"),
        ("{format: pairs, path: ./no.jsonl}", "line 4, data: "),
        ("{format: mmlu_pro, path: q.jsonl, out_of_domain: [lw]}", "line 4, data: unknown category 'lw'"),
        ("{format: mmlu_pro, path: q.jsonl, options: {wrongs: each}}", "format mmlu_pro does not take these options"),
        ("{format: mmlu_pro, path: q.jsonl, test_fraction: 1.0e-9}", "no row of q.jsonl falls into held_out"),
    ],
)
def test_faults_of_data(tmp_path: Path, data: str, sentence: str) -> None:
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps(each) for each in questions(9)))
    with pytest.raises(UsageError) as caught:
        texts(tmp_path, data)
    assert sentence in str(caught.value)
