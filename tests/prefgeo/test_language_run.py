"""Runs of language-model recipes: what they write, that killed ones continue to the same bytes, and what is refused."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("transformers")

from prefgeo import progress
from prefgeo.cli import main
from prefgeo.errors import UsageError
from prefgeo.language import run as run_module
from prefgeo.language import stages
from prefgeo.language.run import run_language_recipe
from prefgeo.language.stage_monitor import StageMonitor

QUICKSTART = Path(__file__).resolve().parents[2] / "recipes" / "quickstart_lm.yaml"
TINY: dict[str, Any] = {
    "name": "tiny",
    "model": {"name": "tiny", "sizes": {"width": 16, "layers": 2, "heads": 2, "context": 128}},
    "tokenizer": {"name": "embedded", "vocab_size": 300},
    "data": {
        "format": "world", "world": {"name": "e3", "options": {"grammar": {"max_length": 16}}},
        "supervised": 60, "rows": 80, "held_out": 20,
    },
    "sft": {"learning_rate": 0.01, "steps": 8, "batch_size": 8, "log_every": 2},
    "objective": {"name": "dpo"},
    "training": {"learning_rate": 0.01, "epochs": 1, "batch_size": 4, "accumulation": 2, "log_every": 2},
    "evaluate": {"generations": 6, "max_new_tokens": 12},
}  # fmt: skip


def recipe(folder: Path, **sections: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**TINY, **sections}, sort_keys=False), encoding="utf-8")
    return path


def written(folder: Path) -> dict[str, bytes]:
    """Every file of a run but what says when and where it was made."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped."""
    home = tmp_path_factory.mktemp("whole")
    run_language_recipe(recipe(home), home / "out")
    return home / "out"


def test_a_run_writes_its_folder(whole: Path) -> None:
    names = {entry.name for entry in whole.iterdir()}
    assert names == {
        "config.json", "manifest.json", "metrics.jsonl", "result.json", "stages.json", "curve.png", "sft", "model",
    }  # fmt: skip
    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest["roles"] == {
        "start": "the model after SFT", "policy": "the start, trained", "reference": "the model after SFT",
    }  # fmt: skip
    assert len(manifest["reference_sha256"]) == 64 and "transformers" in manifest["versions"]
    assert (whole / "model" / "model.safetensors").is_file() and (whole / "model" / "tokenizer.json").is_file()
    files = ("model.safetensors", "config.json")
    assert len({(whole / "model" / name).stat().st_mode for name in files}) == 1  # for others to read, or not, alike
    assert (whole / "curve.png").read_bytes()[:4] == b"\x89PNG"
    result = json.loads((whole / "result.json").read_text())
    assert list(result["stages"]) == ["start", "sft", "preference"]
    for stage in result["stages"].values():
        assert 0 <= stage["pairs"]["held_out"]["accuracy"] <= 1
        assert 1 <= stage["generations"]["length"] <= 16 + 1
    found = result["stages"]["preference"]["pairs"]["held_out"]
    for name in ("accuracy", "by_margin"):
        low, high = found[f"{name}_interval"]
        assert low < found[name] < high
    assert set(found["by_category"]) == set(found["by_category_by_margin"])


def test_accuracy_is_that_of_the_evaluation(whole: Path) -> None:
    """The numbers of a stage are those of ``prefgeo evaluate`` on the same rows."""
    from llm_backend.data import PreferenceRow, Preferences
    from llm_backend.evaluation import evaluate_sets, pair_sets
    from llm_backend.models import load_model
    from llm_backend.tokenizers import load_tokenizer
    from prefgeo.language.data import HELD_OUT, load_texts
    from prefgeo.language.recipe import load_language_recipe

    loaded, fault = load_language_recipe(whole.parent / "recipe.yaml")
    rows = load_texts(loaded.data, loaded.seed, fault, whole).splits[HELD_OUT].rows
    sets = pair_sets(Preferences(tuple(row for row in rows if isinstance(row, PreferenceRow)), "held out"))
    policy, reference = load_model(whole / "model"), load_model(whole / "sft")
    report = evaluate_sets("pairs", sets, load_tokenizer(str(whole / "model")), policy, reference)
    found = json.loads((whole / "result.json").read_text())["stages"]["preference"]["pairs"]["held_out"]
    assert found["rows"] == report.about["evaluated"]
    for name, by in (("accuracy", "log_prob"), ("by_margin", "implicit_reward")):
        metric = report.value("accuracy", by)
        assert (found[name], found[f"{name}_interval"]) == (metric.value, [metric.low, metric.high])
    assert found["margin"] == pytest.approx(report.value("margin", "implicit_reward").value, rel=1e-4)  # float32


def test_metrics_begin_at_the_reference_and_learn(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["stage"] == "sft"] == [1, 2, 4, 6, 8]
    first = next(line for line in lines if line["stage"] == "preference")
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5)  # margin 0 before the first step; float32
    assert first["rewards/chosen"] == pytest.approx(0.0, abs=1e-4)
    sft = [line["loss"] for line in lines if line["stage"] == "sft"]
    assert sft[-1] < sft[0] - 0.5


@pytest.mark.parametrize(("every", "between"), [(10, []), (4, [4])])
def test_the_last_step_is_always_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, between: list[int]
) -> None:
    """Its line is the mean since the last one; lines before it are what they are with any length of training."""
    sections = {name: {**TINY[name], "log_every": every} for name in ("sft", "training")}
    monkeypatch.setattr(run_module._Runner, "_evaluate", lambda *_: {"pairs": {}})
    run_language_recipe(recipe(tmp_path, **sections), tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    of = {stage: [line["step"] for line in lines if line["stage"] == stage] for stage in ("sft", "preference")}
    assert of == {"sft": [1, *between, 8], "preference": [1, *between, 6]}
    assert all(line["loss"] > 0 for line in lines)


def test_a_language_run_tells_of_scoring_writing_and_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every part of it that can be long, in lines with the loss, as into a log file."""
    monkeypatch.setattr(progress, "PERIOD", 0.0)
    monkeypatch.setattr(progress, "LINES", 1e9)
    run_language_recipe(recipe(tmp_path), tmp_path / "out")
    lines = capsys.readouterr().err.splitlines()
    for what in ("scoring rows (initial): ", "scoring rows (evaluated): ", "writing responses: ", "sft training: "):
        assert any(line.startswith(what) for line in lines), what
    last = [line for line in lines if line.startswith("preference training: ")][-1]
    assert last.startswith("preference training: 6 of 6, loss ") and last.endswith(" elapsed")


class StoppedError(Exception):
    """What a kill looks like from inside."""


@pytest.mark.parametrize(("stage", "step"), [("sft", 6), ("preference", 4)])
def test_a_stopped_run_continues_to_the_same_bytes(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, step: int
) -> None:
    """With a checkpoint at every logged step, stopped between two; finished stages are not run again."""
    usual = StageMonitor.on_step_end

    def stop(self: StageMonitor, args: Any, state: Any, control: Any, **more: Any) -> None:
        if self.stage == stage and state.global_step == step:
            raise StoppedError
        usual(self, args, state, control, **more)

    path, out = recipe(tmp_path), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(StageMonitor, "on_step_end", stop)
        with pytest.raises(StoppedError):
            run_language_recipe(path, out, checkpoint_seconds=0.0)
    assert list((out / "checkpoints" / stage).glob("checkpoint-*"))
    with pytest.raises(UsageError, match="exists and is left as it is"):
        run_language_recipe(path, out)
    seen: list[int] = []

    def watch(self: StageMonitor, args: Any, state: Any, control: Any, **more: Any) -> None:
        seen.append(state.global_step)
        usual(self, args, state, control, **more)

    monkeypatch.setattr(StageMonitor, "on_step_end", watch)
    if stage == "preference":
        monkeypatch.setattr(run_module, "run_supervised", None)  # must not be called
    run_language_recipe(path, out, resume=True)
    assert seen[0] == step - 1  # after the last logged step: from the last checkpoint, and not from the beginning
    assert written(out) == written(whole)


def test_a_finished_run_is_not_run_again(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = written(whole)
    monkeypatch.setattr(stages, "_train", None)
    done = run_language_recipe(recipe(whole.parent), whole, resume=True)
    assert done.was_finished and written(whole) == before


def test_a_folder_of_another_recipe_or_device_is_refused(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"belongs to another run: seed is 0 there and 1 here; undo that, or"):
        run_language_recipe(recipe(tmp_path, seed=1), whole, resume=True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UsageError, match="torch sees no GPU here; say cpu"):
        run_language_recipe(recipe(tmp_path), tmp_path / "other", device="cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(UsageError, match="was begun with --device cpu"):
        run_language_recipe(recipe(tmp_path), whole, resume=True, device="cuda")
    with pytest.raises(UsageError, match="say cpu or cuda"):
        run_language_recipe(recipe(tmp_path), tmp_path / "other", device="cuda:1")


def test_a_changed_reference_is_refused(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the model after SFT was exchanged between the two halves of a run."""
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "result.json").unlink()
    stages_file, manifest_file = out / "stages.json", out / "manifest.json"
    finished = json.loads(stages_file.read_text())
    stages_file.write_text(json.dumps({name: finished[name] for name in ("start", "sft")}))
    manifest_file.write_text(json.dumps(json.loads(manifest_file.read_text()) | {"reference_sha256": "0" * 64}))
    with pytest.raises(UsageError, match="the reference is another model than when it was begun"):
        run_language_recipe(recipe(tmp_path), out, resume=True)


def test_seeds_differ(whole: Path, tmp_path: Path) -> None:
    run_language_recipe(recipe(tmp_path, seed=1), tmp_path / "out")
    ours, other = written(whole), written(tmp_path / "out")
    assert ours["model/model.safetensors"] != other["model/model.safetensors"]
    assert ours["result.json"] != other["result.json"]


VARIANTS: dict[str, dict[str, Any]] = {
    "lora, adapter off": {
        "model": {
            "name": "tiny", "sizes": {"architecture": "qwen3", "width": 16, "layers": 2, "heads": 2, "context": 128},
            "lora": {"r": 2, "alpha": 4, "targets": ["q_proj", "v_proj"], "blocks": 1},
        },
        "reference": {"name": "adapter_off"}, "objective": {"name": "ipo"},
    },
    "last block, no SFT, no reference, checkpointing": {
        "sft": None, "objective": {"name": "simpo"},
        "model": {"name": "tiny", "sizes": {"width": 16, "heads": 2, "context": 128}, "trainable": "last_block"},
        "training": {"learning_rate": 0.01, "steps": 2, "batch_size": 4, "gradient_checkpointing": True},
    },
    "TDPO, no SFT": {"sft": None, "objective": {"name": "tdpo2"}},
    "bfloat16, KTO, flips, proxy, greedy": {
        "objective": {"name": "kto"}, "training": {"learning_rate": 0.01, "steps": 2, "precision": "bfloat16"},
        "data": {**TINY["data"], "flip": 0.3, "ranked_by": "proxy"},
        "evaluate": {"generations": 6, "temperature": 0.0},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_run(tmp_path: Path, name: str) -> None:
    done = run_language_recipe(recipe(tmp_path, **VARIANTS[name]), tmp_path / "out")
    last = done.result["stages"]["preference"]
    share = last["trained_parameters"] / last["parameters"]
    assert (share == 1.0) if name[0] in "bT" else (0.0 < share < 0.5)
    if name.startswith("lora"):  # q and v of one block: in + out features by rank 2, of 16 -> 16 and 16 -> 8
        assert last["trained_parameters"] == 2 * ((16 + 16) + (16 + 8))
        assert (tmp_path / "out" / "model" / "adapter_model.safetensors").is_file()
    assert ("sft" in done.result["stages"]) is ("no SFT" not in name)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = recipe(tmp_path, sft=None), tmp_path / "out"
    assert main(["run", str(path), "--out", str(out)]) == 2
    err = capsys.readouterr().err
    assert "trains a language model, which the exact backend cannot do: run it with --backend torch" in err
    assert err.count("\n") == 1 and not out.exists()
    assert main(["run", str(path), "--backend", "torch", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "gold reward" in printed.out and "curve.png" in printed.out and "preference" in printed.out
    assert "shards" not in printed.err  # the bars of other packages stay away
    assert main(["run", str(path), "--backend", "torch", "--out", str(out), "--resume"]) == 0
    assert "is finished already; this is its result." in capsys.readouterr().out


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path: Path) -> None:
    path = recipe(tmp_path, model={"name": "no/such/folder"}, tokenizer={"name": "model"}, sft=None)
    with pytest.raises(UsageError, match=r"recipe.yaml, line 3, model.name: 'no/such/folder' leads nowhere: there is"):
        run_language_recipe(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_quickstart_learns_in_time(tmp_path: Path) -> None:
    """The whole recipe: DPO raises the gold reward of what the model writes, well beyond the errors."""
    begun = time.monotonic()
    stages = run_language_recipe(QUICKSTART, tmp_path / "out").result["stages"]
    seconds = time.monotonic() - begun
    before, after = stages["sft"]["generations"], stages["preference"]["generations"]
    error = (before["gold_standard_error"] ** 2 + after["gold_standard_error"] ** 2) ** 0.5
    assert stages["start"]["generations"]["gold"] < 0.2 < before["gold"]
    assert after["gold"] - before["gold"] > 5 * error
    assert stages["preference"]["pairs"]["held_out"]["by_margin"] > 0.75
    assert seconds < 90


def test_models_are_named_relative_to_the_recipe(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the command is given in another folder: model, tokenizer and reference."""
    home, elsewhere = tmp_path / "recipes", tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copytree(whole / "sft", home / "base")
    path = recipe(
        home, model={"name": "base"}, tokenizer={"name": "../recipes/base"}, sft=None,
        reference={"name": "path", "path": "base"}, training={"learning_rate": 0.01, "steps": 1, "batch_size": 4},
    )  # fmt: skip
    monkeypatch.chdir(elsewhere)
    done = run_language_recipe(path, tmp_path / "out")
    assert json.loads((done.folder / "config.json").read_text())["model"]["name"] == "base"  # as it was written
    assert done.result["stages"]["preference"]["pairs"]["held_out"]["by_margin"] >= 0.0


def test_a_reference_of_another_vocabulary_is_one_sentence(whole: Path, tmp_path: Path) -> None:
    from llm_backend.toy import make_model

    make_model(vocab_size=270, seed=0).save_pretrained(tmp_path / "other")
    path = recipe(tmp_path, model={"name": str(whole / "sft")}, tokenizer={"name": "model"}, sft=None,
                  reference={"name": "path", "path": "other"}, evaluate={"generations": 2})  # fmt: skip
    with pytest.raises(UsageError, match=r"reference.path: the reference .*other does not fit the policy's token"):
        run_language_recipe(path, tmp_path / "out")
