"""The smallest language-model recipe, for tests that change a line of it: the mistakes are told by line."""

from __future__ import annotations

RECIPE = """name: small
model: {name: tiny, sizes: {width: 16, layers: 1, heads: 2, context: 64}}
tokenizer: {name: embedded, vocab_size: 300}
data:
  format: world
  world: {name: e3, options: {grammar: {max_length: 8}}}
  supervised: 10
  rows: 12
  held_out: 6
objective: {name: dpo}
training: {learning_rate: 0.01, steps: 1}
evaluate: {generations: 0}
"""
