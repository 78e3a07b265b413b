"""A reward that a program can give to any text: does it speak of its prompt, and without saying things over again?"""

from __future__ import annotations

import re

from llm_backend.data.rows import Content

LEAST = 4
_WORD = re.compile(r"[a-z0-9']+")


def word_reward(prompt: Content, response: str) -> float:
    """(c + d) / 2 in [0, 1]: c is the share of the prompt's long words (of 4 letters and more, each once) that the
    response has, d the share of the response's words that are different ones. An empty response is worth 0.

    It reads no meaning: a model that serves it has learned to name its subject and not to stutter, and a repetition of
    the prompt is worth 1. Longer responses name more and repeat more, so it has no fixed taste for length.

    >>> word_reward("Name a river of Europe.", "Europe has the river Rhine, a river.")
    0.7619047619047619
    """
    said = _WORD.findall(response.lower())
    if not said:
        return 0.0
    asked = {word for word in _WORD.findall(_last(prompt).lower()) if len(word) >= LEAST}
    named = len(asked.intersection(said)) / len(asked) if asked else 0.0
    return (named + len(set(said)) / len(said)) / 2.0


def _last(prompt: Content) -> str:
    """The text of the prompt, or of the last message of a chat."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]
