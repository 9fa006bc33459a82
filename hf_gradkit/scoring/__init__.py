"""The forward engine, one resumable map of a data set through a model, and the rewards that are scored with it."""

from .engine import NonFiniteScoreError, Scorer, Scores, load_scores, score_rows
from .folds import Folds, fold_of
from .margins import PairScoring, Rewards, add_reward_margins
from .records import check_recorded_reward_model, describe_reward_model, recorded_reward_model
from .rewards import RewardScorer, load_reward_model, tokenize_pairs

__all__ = [
    "Folds",
    "NonFiniteScoreError",
    "PairScoring",
    "RewardScorer",
    "Rewards",
    "Scorer",
    "Scores",
    "add_reward_margins",
    "check_recorded_reward_model",
    "describe_reward_model",
    "fold_of",
    "load_reward_model",
    "load_scores",
    "recorded_reward_model",
    "score_rows",
    "tokenize_pairs",
]
