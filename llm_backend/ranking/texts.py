"""Prompts as plain text, for models that are not given token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llm_backend.data.rows import Content
from llm_backend.ranking.errors import RankingError


def plain_text(prompt: Content) -> str:
    """The text itself; the content of a single message of the user; else each message after its role and a colon."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return prompt[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def as_answer(prompt: Content, text: str) -> Content:
    """A candidate as training has it: text after text, one message of the assistant after messages."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def check_template(template: str, names: Sequence[str]) -> None:
    """Raises RankingError unless the template of a judge has ``{name}`` of each part exactly once."""
    for name in names:
        times = template.count("{" + name + "}")
        if times != 1:
            raise RankingError(f"the template of a judge must have {{{name}}} once, not {times} times")


def fill(template: str, parts: Mapping[str, str]) -> str:
    """The template with ``{name}`` of each part replaced, each once: braces inside the parts mean nothing.

    >>> fill("Q: {prompt} A: {response}", {"prompt": "{response}?", "response": "yes"})
    'Q: {response}? A: yes'
    """
    pieces, rest = [], template
    for name, text in sorted(parts.items(), key=lambda part: template.index("{" + part[0] + "}")):
        before, rest = rest.split("{" + name + "}", 1)
        pieces += [before, text]
    return "".join([*pieces, rest])
