"""Two prompts with three candidates each, as text and as messages, and a tokenizer that knows their words."""

from __future__ import annotations

from llm_backend.toy import make_tokenizer

TOKENIZER = make_tokenizer(["the cat sat on the mat", "a dog ran over the green hill"], vocab_size=300)
PROMPTS = ["the cat", "a dog ran over the"]
CANDIDATES = [[" sat on the mat", " ran", " sat"], [" hill", " green hill", " mat on the dog"]]
CHAT = [[{"role": "user", "content": text}] for text in PROMPTS]
