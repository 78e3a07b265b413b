"""Who ranks in a loop: a reward model in a folder, a judge over HTTP, the policy itself; each decides the pairs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("httpx")
pytest.importorskip("transformers")

import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from llm_backend.toy import make_tokenizer
from prefgeo.language.loop_rankers import right_answer
from prefgeo.language.run import run_language_recipe

SMALL: dict[str, Any] = {
    "name": "ranked",
    "model": {"name": "tiny", "sizes": {"architecture": "gpt2", "width": 16, "layers": 1, "heads": 2, "context": 512}},
    "tokenizer": {"name": "embedded", "vocab_size": 300},
    "data": {
        "format": "world", "world": {"name": "e3", "options": {"grammar": {"max_length": 8}}},
        "supervised": 40, "rows": 16, "held_out": 6,
    },
    "objective": {"name": "dpo"},
    "training": {"learning_rate": 0.003, "epochs": 1, "batch_size": 4},
    "algorithm": {"name": "iterative", "options": {"rounds": 1}},
    "prompts": {"name": "world", "per_round": 6},
    "generation": {"candidates": 3, "max_new_tokens": 8},
    "pairing": {"drop_cut_off": False, "drop_empty": False},
    "evaluate": {"generations": 4, "max_new_tokens": 8},
}  # fmt: skip


def rows(folder: Path, **sections: Any) -> tuple[dict[str, float], list[list[float | None]], list[list[str]]]:
    """The metrics of the last round, its scores, and its candidates."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(SMALL | sections, sort_keys=False), encoding="utf-8")
    result = run_language_recipe(path, folder / "out").result
    scores: list[Any] = []
    texts: list[Any] = []
    for name, found in (("scores", scores), ("responses", texts)):
        newest = max(
            (folder / "out" / "store" / "draws").glob(f"{name}-*.jsonl"), key=lambda each: each.stat().st_mtime
        )
        for line in newest.read_text().splitlines()[1:]:
            found.append(json.loads(line))
    return result["rounds"][-1]["metrics"], scores, texts


@pytest.fixture
def judge() -> Iterator[tuple[str, list[str]]]:
    """A server that prefers the first response, whatever it says; its address, and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body["messages"][0]["content"])
            answer = json.dumps({"choices": [{"message": {"role": "assistant", "content": "**Verdict: A**"}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", asked
    server.shutdown()
    server.server_close()


def test_a_judge_is_asked_in_both_orders_and_its_taste_for_a_place_makes_ties(
    judge: tuple[str, list[str]], tmp_path: Path
) -> None:
    url, asked = judge
    recipe = {"ranking": {"name": "judge", "options": {"url": url, "model": "m", "retries": 0}}}
    with pytest.raises(ValueError, match="no row is left after filtering"):
        rows(tmp_path, **recipe)
    assert len(asked) > 6  # six prompts with up to six ordered pairs each
    assert (tmp_path / "out" / "store" / "draws" / "judge-answers.jsonl").is_file()


def test_a_reward_model_in_a_folder_ranks(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(["name stone car : well so then"], 270)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_labels=1, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    metrics, scores, _ = rows(tmp_path, ranking={"name": "reward_model", "options": {"path": "reward"}})
    assert metrics["rows_kept"] > 0
    assert len({value for line in scores for row in line["content"]["scores"] for value in row}) > 3


def test_implicit_rewards_rank_after_a_first_round_of_given_pairs(tmp_path: Path) -> None:
    metrics, _, _ = rows(
        tmp_path,
        ranking={"name": "self", "options": {"kind": "implicit"}},
        pairing=SMALL["pairing"] | {"first_round": "data"},
        algorithm={"name": "iterative", "options": {"rounds": 2}},
    )
    assert metrics["rows_kept"] > 0


def test_the_policy_as_judge_gives_no_verdict_when_it_cannot_count(tmp_path: Path) -> None:
    recipe = {"ranking": {"name": "self", "options": {"kind": "judge", "max_new_tokens": 4}}}
    with pytest.raises(ValueError, match=r"no row is left after filtering .*no_verdict"):
        rows(tmp_path, **recipe)


@pytest.mark.parametrize(
    ("right", "response", "worth"),
    [
        (" (C) Paris", " So. The answer is (C).", 1.0), (" (C) Paris", " Answer is (B). The answer is C.", 1.0),
        (" (C) Paris", " (C) Rome", 1.0), (" (C) Paris", " The answer is (D)", 0.0), (" (C) Paris", " Cats", 0.0),
        (" (C) Paris", " Paris", 0.0), (" Paris", " Paris, of course", 1.0), (" Paris", " It is Paris", 0.0),
    ],
)  # fmt: skip
def test_right_answers(right: str, response: str, worth: float) -> None:
    assert right_answer({repr("Q"): right}, "Q", response) == worth
