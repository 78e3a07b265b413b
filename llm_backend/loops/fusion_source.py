"""WRPO's data: recorded responses of source models, beside the target's own, recorded too or written by the policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llm_backend.data import Candidate, FusionPrompt, PreferenceRow, Preferences, best_source, fusion_rows
from llm_backend.data.noise import FlipMode
from llm_backend.data.rows import Content
from llm_backend.loops.candidate_source import CandidateSource
from llm_backend.loops.errors import LoopError
from llm_backend.loops.rows import RoundText
from llm_backend.loops.sources import TRAIN, Draw, check_kind, counted, flipped
from llm_backend.loops.store import PolicyStore

TARGET = "target"


@dataclass(frozen=True, kw_only=True)
class FusionSource:
    """Kinds ``candidates``: quadruples (y_ws, y_wt, y_l and, with ``source_rejected``, y_ls); ``hybrid``: pairs
    (y_ws, y_l); ``supervised``: the sources' best responses of the prompts in ``supervised``.

    ``target`` None: the target's responses are those recorded in ``preferences``. Else the policy that draws writes
    them, and ``target`` says how and who ranks them (its own prompts and pairing are not looked at, but for which
    responses its rule drops); its scores and the sources' rewards must be on one scale.
    Source: WRPO (Yang et al. 2024, arXiv:2412.03187), Sec. 3; labels of the policy's own pair are flipped, never y_ws.
    """

    preferences: Sequence[FusionPrompt]
    supervised: Sequence[FusionPrompt] = ()
    held_out: Sequence[FusionPrompt] = ()
    target: CandidateSource | None = None
    source_rejected: bool = False
    flip_mode: FlipMode = "iid"
    seed: int = 0

    @property
    def kinds(self) -> tuple[str, ...]:
        """Quadruples, hybrid pairs, and demonstrations where there are prompts for them."""
        return ("candidates", "hybrid", "supervised") if self.supervised else ("candidates", "hybrid")

    def rows(self, store: PolicyStore, draw: Draw) -> RoundText:
        """The rows of a draw; rows are numbered by the place of their prompt."""
        check_kind(self, draw)
        if draw.kind == "supervised":
            return self._demonstrations(draw)
        prompts = self.preferences if draw.split == TRAIN else self.held_out
        if not prompts:
            raise LoopError(f"{draw.split} rows are asked for, but no prompt with recorded responses is given for them")
        places, told = draw.pick(range(len(prompts))), dict[str, int]()
        mine = [prompts[place] for place in places]
        if self.target is not None:
            mine, told = self._written(store, draw, mine, places, self.target)
        found = fusion_rows(mine, "fusion", source_rejected=self.source_rejected, seed=self.seed)
        rows = tuple(replace(row, row=places[row.row]) for row in found.rows)
        if draw.kind == "hybrid":
            rows = tuple(_hybrid(row) for row in rows)
        left_out = dict.fromkeys(LEFT_OUT, 0) | dict(found.left_out)
        preferences = Preferences(rows, "fusion", left_out)
        return RoundText(flipped(preferences, draw, self.flip_mode), left_out=told)

    def _demonstrations(self, draw: Draw) -> RoundText:
        """The best response of the sources to each prompt, as ``fusion_rows`` chooses it."""
        rows, missing = [], 0
        for place in draw.pick(range(len(self.supervised))):
            prompt = self.supervised[place]
            best = best_source(prompt, self.seed)
            if best is None:
                missing += 1
                continue
            rows.append(PreferenceRow(place, prompt.prompt, best.response, best.response))
        return RoundText(Preferences(tuple(rows), "supervised", {"no candidates": missing}), supervised=True)

    def _written(
        self, store: PolicyStore, draw: Draw, prompts: Sequence[FusionPrompt], keys: Sequence[int], how: CandidateSource
    ) -> tuple[list[FusionPrompt], dict[str, int]]:
        """The prompts with responses of the policy as the target's, and how many responses were left out."""
        ranked, judged = how.candidates(store, draw, [each.prompt for each in prompts], keys)
        told = {"responses_cut_off": 0, "responses_empty": 0, "responses_no_verdict": 0}
        done = []
        for prompt, each in zip(prompts, ranked, strict=True):
            own = []
            for response, score in zip(each.responses, each.scores.tolist(), strict=True):
                if score != score:
                    told["responses_no_verdict"] += 1
                elif how.rule.drop_empty and not response.text.strip():
                    told["responses_empty"] += 1
                elif how.rule.drop_cut_off and not response.finished:
                    told["responses_cut_off"] += 1
                else:
                    own.append(Candidate(TARGET, _content(prompt.prompt, response.text), score))
            done.append(replace(prompt, target=tuple(own)))
        return done, told | counted("ranking_", judged)


LEFT_OUT = (
    "no candidates", "the target's responses have one reward", "no source is better than the rejected response",
    "the sources' responses have one reward",
)  # fmt: skip


def _hybrid(row: PreferenceRow) -> PreferenceRow:
    """(y_ws, y_l): the source's best response in the place of the target's; its score is not recorded."""
    assert row.source_chosen is not None
    return replace(
        row, chosen=row.source_chosen, source_chosen=None, source_rejected=None, score_chosen=None, score_rejected=None
    )


def _content(prompt: Content, text: str) -> Content:
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
