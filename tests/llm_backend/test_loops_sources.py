"""The data of rounds: reproducible, in parts, written chunk by chunk, and what each source refuses."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

from scipy.special import expit

from llm_backend.data import FusionPrompt, Preferences
from llm_backend.generation import ModelGenerator
from llm_backend.loops import Draw, FusionSource, LoopError, SourcesByKind, StoreError
from llm_backend.loops.chunk_log import ChunkLog
from llm_backend.pairing import PairRule
from llm_backend.prompts import FixedPrompts, PromptBatch
from tests.llm_backend import loop_world


class Counting:
    """A generator that counts its calls, and may be killed before one of them."""

    def __init__(self, dies_at=None):
        self.calls, self.dies_at, self.prompts = 0, dies_at, []

    def __call__(self, store, policy, tokens):
        self.inner = ModelGenerator(store.model(policy), store.tokenizer(policy), tokens)
        return self

    def generate(self, prompts, sampling, *, seed, keys=None):
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        self.calls += 1
        self.prompts += list(prompts)
        return self.inner.generate(prompts, sampling, seed=seed, keys=keys)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return loop_world.backend(tmp_path_factory.mktemp("world"))


def draw(world, source, **options):
    settings = {"policy": world.base, "kind": source.kinds[0], "seed": world.seed}
    return source.rows(world.store, Draw(**(settings | options)))


def texts(found):
    return [(row.prompt, row.chosen, row.rejected, row.source_chosen) for row in found.preferences.rows]


# -- chunks -------------------------------------------------------------------------------------------------------


def test_a_chunk_is_done_once_and_a_broken_line_is_cut(tmp_path):
    path, done = tmp_path / "folder" / "work.jsonl", []

    def work(number):
        done.append(number)
        return [number, 0.1 + 0.2, None, "ä"]

    log = ChunkLog(path, {"a": 1})
    assert [log.chunk(n, lambda n=n: work(n)) for n in range(3)] == [[n, 0.1 + 0.2, None, "ä"] for n in range(3)]
    whole = path.read_bytes()
    for lost in (1, 5, 20):  # of the last line
        path.write_bytes(whole[:-lost])
        again = ChunkLog(path, {"a": 1})
        assert [again.chunk(n, lambda n=n: work(n))[0] for n in range(3)] == [0, 1, 2]
        assert path.read_bytes() == whole
    assert done == [0, 1, 2, 2, 2, 2]
    end = whole.index(b"\n") + 1
    for begun in (5, end, end + 9):  # killed in the header, behind it, in the first chunk
        path.write_bytes(whole[:begun])
        again = ChunkLog(path, {"a": 1})
        assert again.chunks == [] and [again.chunk(n, lambda n=n: work(n))[0] for n in range(3)] == [0, 1, 2]
        assert path.read_bytes() == whole


def test_a_log_of_other_work_or_a_damaged_one_is_told(tmp_path):
    path = tmp_path / "work.jsonl"
    log = ChunkLog(path, {"a": 1})
    log.chunk(0, lambda: 5)
    with pytest.raises(StoreError, match="chunk 2 is asked for before chunk 1"):
        log.chunk(2, lambda: 5)
    with pytest.raises(StoreError, match="belongs to other work; delete it"):
        ChunkLog(path, {"a": 2})
    path.write_text('{"header": {"a": 1}}\nnonsense\n{"chunk": 1, "content": 5}\n')
    with pytest.raises(StoreError, match=r"is damaged \(.*; delete it, and it is made again"):
        ChunkLog(path, {"a": 1})


# -- candidates ---------------------------------------------------------------------------------------------------


def test_a_draw_is_named_by_seed_round_and_split(world):
    source = loop_world.candidates()
    first = texts(draw(world, source))
    assert first == texts(draw(world, source)) and len(first) > 6
    shared = [texts(draw(world, source, **other)) for other in ({"round_index": 2}, {"split": "heldout"}, {"seed": 9})]
    assert all(found != first for found in shared)
    assert {row[0] for row in first}.isdisjoint(row[0] for row in shared[1])
    assert len(draw(world, source, split="heldout").preferences.rows) <= 8


def test_parts_of_a_draw_make_up_the_whole_and_generate_no_more(world, tmp_path):
    spy = Counting()
    source = loop_world.candidates(generator=spy)
    parts = [draw(world, source, part=(i, 3), flip=0.4) for i in range(3)]
    assert len(spy.prompts) == 12 == len(set(spy.prompts))
    whole = draw(world, source, flip=0.4)
    assert sorted(row for part in parts for row in texts(part)) == sorted(texts(whole))
    tallies = [world.counts(world.preferences(world.base, kind="candidates", flip=0.4, round_index=1, part=(i, 3)))
               for i in range(3)]  # fmt: skip
    one = world.counts(world.preferences(world.base, kind="candidates", flip=0.4, round_index=1))
    for name, value in one.items():
        assert sum(each.get(name, 0) for each in tallies) == value, name
    assert sum(int(one[name][0]) for name in one if name not in ("flipped", "prompts_repeats")) == 12


def test_what_was_generated_and_ranked_is_not_done_again(tmp_path):
    world = loop_world.backend(tmp_path)
    judge, spy = loop_world.Checksum(), Counting(dies_at=2)
    with pytest.raises(KeyboardInterrupt):
        draw(world, loop_world.candidates(judge, generator=spy))
    assert judge.calls == 0
    more = Counting()
    found = draw(world, loop_world.candidates(judge, generator=more))
    assert (spy.calls, more.calls, judge.calls) == (2, 1, 3), "12 prompts are chunks of 5, 5 and 2"
    assert not set(more.prompts) & set(spy.prompts)
    whole = draw(loop_world.backend(tmp_path / "other"), loop_world.candidates(generator=Counting()))
    assert texts(found) == texts(whole)
    scores = next((tmp_path / "draws").glob("scores-*.jsonl"))
    scores.write_bytes(scores.read_bytes()[:-30])
    last = Counting()
    assert texts(draw(world, loop_world.candidates(judge, generator=last))) == texts(found)
    assert (last.calls, judge.calls) == (0, 4)


def test_the_policy_that_draws_is_part_of_the_name(world):
    other = world.store.add(loop_world.model(loop_world.tokenizer(), seed=5), world.base)
    source = loop_world.candidates()
    assert texts(draw(world, source)) != texts(draw(world, source, policy=other))


def test_label_noise_is_of_the_round_or_of_the_pair(world):
    source = loop_world.fixed()
    noisy = [draw(world, source, flip=0.5, round_index=t).preferences.rows for t in (1, 2)]
    flips = [[row.flipped for row in rows] for rows in noisy]
    assert flips[0] != flips[1] and 0 < sum(flips[0]) < 12
    assert [row.flipped for row in draw(world, source, flip=0.5).preferences.rows] == flips[0]
    apart = draw(world, source, flip=0.5, split="heldout").preferences.rows
    assert [row.flipped for row in apart] != flips[0][:6], "held-out rows have noise of their own"
    stays = loop_world.fixed(flip_mode="persistent")
    kept = [[row.flipped for row in draw(world, stays, flip=0.5, round_index=t).preferences.rows] for t in (1, 2)]
    assert kept[0] == kept[1] and 0 < sum(kept[0]) < 12
    plain = draw(world, source).preferences.rows
    for row, clean in zip(noisy[0], plain, strict=True):
        both = (clean.chosen, clean.rejected)
        assert (row.chosen, row.rejected) == (both[::-1] if row.flipped else both)


def test_win_rates_are_those_of_the_candidates(world):
    source = loop_world.candidates(win_scale=2.0)
    found = draw(world, source)
    assert found.wins is not None
    with_wins = world.__class__(world.store, world.base, source, world.training, world.evaluator, seed=world.seed)
    rows = with_wins.preferences(world.base, kind="candidates", flip=1.0, round_index=1).rows
    batch = source.batch(world.store, Draw(policy=world.base, kind="candidates", seed=world.seed))
    ranked, _ = source.candidates(
        world.store, Draw(policy=world.base, kind="candidates", seed=world.seed), batch.prompts, batch.keys
    )
    scores = {each.key: each.scores for each in ranked}
    for row in rows:
        every = scores[row["row"]]
        rates = expit(2.0 * (every[:, None] - every[None, :])).mean(axis=1)
        assert row["win_rejected"] == pytest.approx(rates.max(), rel=1e-12), "labels are flipped, win rates are not"
        assert row["win_chosen"] == pytest.approx(rates.min(), rel=1e-12)
    both = loop_world.candidates(win_scale=2.0, rule=PairRule(select="all_pairs", drop_cut_off=False, drop_empty=False))
    for row in draw(world, both).preferences.rows:
        one, two = draw(world, both).wins[row.row]
        assert one > two and 0.0 < two < one < 1.0


def test_pairs_of_a_dataset_may_be_the_first_round(world):
    source = loop_world.candidates(first=loop_world.fixed())
    assert [row[0] for row in texts(draw(world, source))] == [row.prompt for row in loop_world.dataset().rows]
    assert texts(draw(world, source, round_index=2)) == texts(draw(world, loop_world.candidates(), round_index=2))
    assert texts(draw(world, source, split="heldout")) == texts(draw(world, loop_world.candidates(), split="heldout"))
    with pytest.raises(LoopError, match="pairs of a dataset have no win rates"):
        loop_world.candidates(first=loop_world.fixed(), win_scale=1.0)


class Inventive:
    """Prompts that the policy writes."""

    def __init__(self):
        self.asked = 0

    def prompts(self, round_index, n, *, generator, seed, split="train"):
        self.asked += 1
        made = generator.generate(["say"] * n, replace(loop_world.SAMPLING, candidates=1), seed=seed)
        return PromptBatch(tuple(f"say{one[0].text} {i}" for i, one in enumerate(made)), tuple(range(n)), {"short": 3})


def test_prompts_that_a_model_wrote_are_kept(tmp_path):
    world, prompts = loop_world.backend(tmp_path), Inventive()
    source = loop_world.candidates(prompts=prompts)
    first = draw(world, source)
    assert first.left_out == {"prompts_short": 3}
    assert texts(draw(loop_world.backend(tmp_path), source)) == texts(first) and prompts.asked == 1
    assert draw(world, source, part=(1, 2)).left_out == {}, "counted once, with the first part"
    draw(world, source, round_index=2)
    assert prompts.asked == 2


# -- a dataset, and fusion ----------------------------------------------------------------------------------------


def test_a_dataset_is_dealt_out_to_rounds(world):
    source = loop_world.fixed(rounds=3)
    dealt = [texts(draw(world, source, round_index=t)) for t in (1, 2, 3)]
    assert (
        sorted(row for part in dealt for row in part) == sorted(texts(draw(world, loop_world.fixed())))
        and len(dealt[0]) == 4
    )
    with pytest.raises(LoopError, match="round 4 is asked for, but the dataset is dealt out to 3 rounds"):
        draw(world, source, round_index=4)
    assert len(texts(draw(world, source, split="heldout"))) == 6
    with pytest.raises(LoopError, match="held-out rows are asked for, but the dataset has none"):
        draw(world, replace(source, held_out=None), split="heldout")


def test_fusion_gives_quadruples_hybrid_pairs_and_demonstrations(world):
    source = loop_world.fusion()
    rows = draw(world, source).preferences.rows
    every = [max(each.sources, key=lambda one: one.reward).response for each in loop_world.recorded()]
    assert [row.source_chosen for row in rows] == [every[row.row] for row in rows] and len(rows) == 12
    hybrid = draw(world, source, kind="hybrid").preferences.rows
    assert [(row.source_chosen, row.rejected) for row in rows] == [(row.chosen, row.rejected) for row in hybrid]
    shown = draw(world, source, kind="supervised")
    assert shown.supervised and len(shown.preferences.rows) == 6
    assert [row.chosen for row in shown.preferences.rows] == every[:6]
    parts = [texts(draw(world, source, part=(i, 2))) for i in (0, 1)]
    assert sorted(parts[0] + parts[1]) == sorted(texts(draw(world, source)))
    flipped = draw(world, source, flip=1.0).preferences.rows
    assert [row.source_chosen for row in flipped] == [row.source_chosen for row in rows]
    assert [row.chosen for row in flipped] == [row.rejected for row in rows]
    tokens = world.__class__(world.store, world.base, source, world.training, world.evaluator)
    assert "source_chosen_ids" in tokens.preferences(world.base, kind="candidates", flip=0, round_index=1).rows[0]
    with pytest.raises(LoopError, match="no prompt with recorded responses is given for them"):
        draw(world, source, split="heldout")


def test_the_target_may_write_its_own_responses(world):
    source = loop_world.fusion(target=loop_world.candidates())
    found = draw(world, source)
    plain = draw(world, loop_world.fusion())
    assert texts(found) != texts(plain) and found.left_out["responses_cut_off"] == 0
    strict = draw(world, loop_world.fusion(target=loop_world.candidates(rule=PairRule())))
    assert strict.left_out["responses_cut_off"] > 0
    dropped = dict(strict.preferences.left_out)
    assert len(strict.preferences.rows) + sum(dropped.values()) == 12
    parts = [draw(world, source, part=(i, 2)) for i in (0, 1)]
    assert sorted(texts(parts[0]) + texts(parts[1])) == sorted(texts(found))


def test_prompts_may_be_messages(world):
    """Candidates and fusion of chats: every row goes through the template, and trains."""
    chats = [[{"role": "user", "content": prompt}] for prompt in loop_world.PROMPTS]
    source = loop_world.candidates(prompts=FixedPrompts(chats, rounds="same"))
    assert texts(draw(world, source))[0][1][0]["role"] == "assistant"
    fused = [
        FusionPrompt(
            [{"role": "user", "content": each.prompt}],
            tuple(replace(one, response=[{"role": "assistant", "content": one.response}]) for one in each.sources),
            (),
        )
        for each in loop_world.recorded()
    ]
    both = FusionSource(preferences=fused, supervised=fused, target=source)
    for kind, chosen in ((source, "candidates"), (both, "candidates"), (both, "hybrid"), (both, "supervised")):
        backend = world.__class__(world.store, world.base, kind, world.training, world.evaluator, seed=world.seed)
        found = backend.preferences(world.base, kind=chosen, flip=0.0, round_index=1)
        assert found.n_rows > 6
        text = world.store.tokenizer(world.base).decode(found.rows[0]["prompt_ids"])
        assert text.startswith("<s><|user|>say") and text.endswith("<|assistant|>")
    assert backend.n_runs == 1


def test_several_sources_are_asked_for_their_own_kinds(world):
    both = SourcesByKind((loop_world.candidates(), loop_world.fixed()))
    assert both.kinds == ("candidates", "fixed", "supervised")
    assert texts(draw(world, both, kind="fixed")) == texts(draw(world, loop_world.fixed()))
    with pytest.raises(LoopError, match="data of the kind candidates, fixed, supervised, not 'hybrid'"):
        draw(world, both, kind="hybrid")


# -- bad input ----------------------------------------------------------------------------------------------------


def test_a_pool_that_is_empty_gives_no_rows_but_counts(world):
    same = loop_world.candidates(prompts=FixedPrompts(["say red"], rounds="same"), n_prompts=1)
    one = replace(same, sampling=replace(loop_world.SAMPLING, top_k=1))
    world_of = world.__class__(world.store, world.base, one, world.training, world.evaluator)
    rows = world_of.preferences(world.base, kind="candidates", flip=0.0, round_index=1)
    assert rows.n_rows == 0 and world_of.counts(rows)["kept"] == 0 and world_of.counts(rows)["identical"] == 1
    long = Preferences(tuple(replace(row, prompt=row.prompt * 30) for row in loop_world.dataset(3).rows), "long")
    cut = world.__class__(
        world.store, world.base, replace(loop_world.fixed(), train=long), world.training, world.evaluator,
        tokens=replace(world.tokens, max_length=20),
    )  # fmt: skip
    tally = cut.counts(cut.preferences(world.base, kind="fixed", flip=0.0, round_index=1))
    assert tally["kept"] == 0 and sum(int(value[0]) for value in tally.values()) == 3


def test_bad_settings_are_told(world):
    source = loop_world.fixed()
    for options, message in (
        ({"flip": 1.5}, r"the flip probability must be in \[0, 1\], got 1.5"),
        ({"split": "test"}, "the split of a draw must be train or heldout, got 'test'"),
        ({"part": (2, 2)}, r"part must be \(i, n\) with 0 <= i < n, got \(2, 2\)"),
    ):
        with pytest.raises(LoopError, match=message):
            draw(world, source, **options)
    with pytest.raises(LoopError, match="the flip probability must be one finite number, as a language"):
        world.preferences(world.base, kind="candidates", flip=np.zeros(3), round_index=1)
    with pytest.raises(LoopError, match="a chunk needs at least 1 prompt, got 0"):
        loop_world.candidates(chunk=0)
    with pytest.raises(LoopError, match="win_scale must be a number > 0"):
        loop_world.candidates(win_scale=0.0)


def test_a_ranker_that_misbehaves_is_told_before_anything_is_kept(tmp_path):
    class Broken:
        name = "broken"

        def scores(self, prompts, candidates):
            return np.full((len(prompts), 3), np.nan)

    world = loop_world.backend(tmp_path)
    with pytest.raises(ValueError, match="broken gave candidate 0 of row 0 the score nan"):
        draw(world, loop_world.candidates(Broken()))
    assert not list((tmp_path / "draws").glob("scores-*"))
    assert json.loads(next((tmp_path / "draws").glob("responses-*")).read_text().splitlines()[0])["header"]["policy"]
