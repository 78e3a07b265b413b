"""Which of several responses is better: rankers behind one interface."""

from __future__ import annotations

from llm_backend.ranking.errors import RankingError
from llm_backend.ranking.gold import GoldRanker
from llm_backend.ranking.judge import JudgeRanker
from llm_backend.ranking.judge_client import Endpoint
from llm_backend.ranking.judge_texts import JUDGE_TEMPLATE
from llm_backend.ranking.pair_model import PairModel, load_pair_model, save_pair_model
from llm_backend.ranking.pair_ranker import PairRanker
from llm_backend.ranking.protocol import CountingRanker, Ranker, Scores, checked_scores
from llm_backend.ranking.reward_model import RewardModelRanker
from llm_backend.ranking.self_reward import SelfJudgeRanker, SelfRewardRanker

__all__ = [
    "Ranker", "CountingRanker", "Scores", "RankingError", "checked_scores", "GoldRanker", "RewardModelRanker",
    "PairRanker", "PairModel", "load_pair_model", "save_pair_model", "JudgeRanker", "Endpoint", "JUDGE_TEMPLATE",
    "SelfRewardRanker", "SelfJudgeRanker",
]  # fmt: skip
