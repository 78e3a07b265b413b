"""WRPO's quadruples: what several source models and the target said, ranked by a reward (arXiv:2412.03187, section 3).

For each prompt y_ws is the sources' best response, y_wt and y_l the target's best and worst, y_ls (Eq. 9) the sources'
worst. The reward is any number; for questions with a right answer it is 1 for a right answer and 0 otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from llm_backend.data.errors import DataError
from llm_backend.data.hashing import uniform
from llm_backend.data.mmlu_pro import Answer, Question, prompt_text
from llm_backend.data.records import Record
from llm_backend.data.rows import Content, PreferenceRow, Preferences, check_row

STOP = "\n\nQuestion:"
"""Where a base model goes on to invent the next question; what follows is no part of its response."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A response of a model, with its reward."""

    model: str
    response: Content
    reward: float


@dataclass(frozen=True, slots=True)
class FusionPrompt:
    """A prompt with the candidates of the sources and of the target."""

    prompt: Content
    sources: tuple[Candidate, ...]
    target: tuple[Candidate, ...]
    category: str | None = None


@dataclass(frozen=True)
class Quadruples(Preferences):
    """Rows with ``source_chosen``, and of how many of them each source wrote it (the paper's Tab. 1)."""

    shares: Mapping[str, int] = field(default_factory=dict)


def fusion_rows(
    prompts: Iterable[FusionPrompt], where: str = "fusion", *, source_rejected: bool = False, seed: int = 0
) -> Quadruples:
    """Quadruples from ranked candidates; ``row`` is the place of the prompt.

    Among equal rewards the response is taken that a hash of seed, prompt and response puts first. Left out, and
    counted: prompts without candidates, those where the target's best and worst have one reward (no preference), and
    those where y_ws has no higher reward than y_l; with ``source_rejected``, also those where the sources all have one
    reward. Raises: DataError for a reward that is not a number, and for rows that ``check_row`` refuses.
    """
    rows: list[PreferenceRow] = []
    left_out: Counter[str] = Counter()
    shares: Counter[str] = Counter()
    for place, prompt in enumerate(prompts):
        if not prompt.sources or not prompt.target:
            left_out["no candidates"] += 1
            continue
        (source_best, source_worst), (best, worst) = (_extremes(prompt, each, seed) for each in _groups(prompt))
        if best.reward == worst.reward:
            left_out["the target's responses have one reward"] += 1
        elif source_best.reward <= worst.reward:
            left_out["no source is better than the rejected response"] += 1
        elif source_rejected and source_best.reward == source_worst.reward:
            left_out["the sources' responses have one reward"] += 1
        else:
            shares[source_best.model] += 1
            row = PreferenceRow(
                place,
                prompt.prompt,
                best.response,
                worst.response,
                source_chosen=source_best.response,
                source_rejected=source_worst.response if source_rejected else None,
                category=prompt.category,
                score_chosen=best.reward,
                score_rejected=worst.reward,
            )
            rows.append(check_row(row))
    return Quadruples(tuple(rows), where, dict(left_out), dict(shares))


def best_source(prompt: FusionPrompt, seed: int = 0) -> Candidate | None:
    """The sources' best response, as ``fusion_rows`` chooses it; None without sources. Raises: DataError as there."""
    sources, _ = _groups(prompt)
    return _extremes(prompt, sources, seed)[0] if sources else None


def mmlu_fusion(
    questions: Sequence[Question],
    sources: Mapping[str, Sequence[Record]],
    target: Mapping[str, Sequence[Record]],
    *,
    answer: Answer = "letter_text",
) -> list[FusionPrompt]:
    """Prompts with the recorded responses of each model: {name: records with question_id, response, predicted_index}.

    The reward is 1 where ``predicted_index`` is the right option. A response is cut at '\\n\\nQuestion:' and the white
    space around it becomes one leading space; an empty one is no candidate. Raises: DataError for missing columns.
    """
    tables = [{name: _by_question(name, records) for name, records in group.items()} for group in (sources, target)]
    prompts = []
    for question in questions:
        groups = (tuple(_candidates(question, name, table) for name, table in group.items()) for group in tables)
        one, two = (tuple(candidate for found in group for candidate in found) for group in groups)
        prompts.append(FusionPrompt(prompt_text(question, answer), one, two, question.category))
    return prompts


def _groups(prompt: FusionPrompt) -> tuple[tuple[Candidate, ...], tuple[Candidate, ...]]:
    for candidate in (*prompt.sources, *prompt.target):
        if candidate.reward != candidate.reward:
            raise DataError(f"the reward of a response of {candidate.model} is not a number; rank every response")
    return prompt.sources, prompt.target


def _extremes(prompt: FusionPrompt, group: Sequence[Candidate], seed: int) -> tuple[Candidate, Candidate]:
    """The best and the worst candidate; ties by the hash, so that no model is favoured for being named first."""
    order = {id(each): uniform("fusion", seed, repr(prompt.prompt), each.model, repr(each.response)) for each in group}
    best = min(group, key=lambda each: (-each.reward, order[id(each)]))
    worst = min(group, key=lambda each: (each.reward, order[id(each)]))
    return best, worst


def _by_question(name: str, records: Sequence[Record]) -> dict[int, Record]:
    needed = ("question_id", "response", "predicted_index")
    for place, record in enumerate(records):
        missing = [column for column in needed if column not in record]
        if missing:
            raise DataError(f"responses of {name}: row {place} has no {missing[0]!r}; needed: {', '.join(needed)}")
    return {record["question_id"]: record for record in records}


def _candidates(question: Question, name: str, table: Mapping[int, Record]) -> list[Candidate]:
    record = table.get(question.question_id)
    text = "" if record is None else record["response"].partition(STOP)[0].strip()
    if record is None or not text:
        return []
    return [Candidate(name, f" {text}", float(record["predicted_index"] == question.answer))]
