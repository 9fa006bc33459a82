"""The forward engine, one resumable map of a data set through a model, and what is scored with it: rewards, tokens."""

from .difficulty import DifficultyScoring, add_difficulty
from .difficulty_columns import Difficulty
from .engine import NonFiniteScoreError, Scorer, Scores, load_scores, score_rows
from .folds import Folds, fold_of
from .margins import PairScoring, Rewards, add_reward_margins
from .records import check_recorded_reward_model, describe_model, recorded_reward_model
from .rewards import RewardScorer, load_reward_model, tokenize_pairs
from .sft_data import SFTFormat, tokenize_sft
from .token_rows import TokenRow
from .tokens import TokenScorer, TokenStatistics, token_statistics

__all__ = [
    "Difficulty",
    "DifficultyScoring",
    "Folds",
    "NonFiniteScoreError",
    "PairScoring",
    "RewardScorer",
    "Rewards",
    "SFTFormat",
    "Scorer",
    "Scores",
    "TokenRow",
    "TokenScorer",
    "TokenStatistics",
    "add_difficulty",
    "add_reward_margins",
    "check_recorded_reward_model",
    "describe_model",
    "fold_of",
    "load_reward_model",
    "load_scores",
    "recorded_reward_model",
    "score_rows",
    "token_statistics",
    "tokenize_pairs",
    "tokenize_sft",
]
