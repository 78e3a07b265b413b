"""What a judge is asked, and how its answer is read."""

from __future__ import annotations

from typing import Literal

Verdict = Literal["first", "second", "tie"]
VERDICTS: dict[str, Verdict] = {"a": "first", "b": "second", "tie": "tie"}
JUDGE_TEMPLATE = """Compare two responses to the same prompt. Judge how well each does what the prompt asks: whether \
it is right, helpful, clear and harmless. Do not let their order, their length or their style of formatting decide.

[Prompt]
{prompt}

[Response A]
{first}

[Response B]
{second}

[End]
Explain in at most three sentences which response is better. Then end with one line that says nothing but \
"Verdict: A", "Verdict: B", or "Verdict: tie" if neither is better.
"""


def read_verdict(answer: str | None) -> Verdict | None:
    """The verdict on the last line of an answer that is not empty; None where it is not exactly one of the three.

    >>> read_verdict("A is right.\\n**Verdict: A**"), read_verdict("Verdict: A or B"), read_verdict("A")
    ('first', None, None)
    """
    lines = [line.strip().strip("*`\"'. ") for line in (answer or "").splitlines()]
    last = next((line for line in reversed(lines) if line), "")
    word, _, choice = last.partition(":")
    if word.strip().strip("*").lower() != "verdict":
        return None
    return VERDICTS.get(choice.strip().strip("*[] ").lower())
