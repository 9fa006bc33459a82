"""The dataclasses whose fields are the options of each job, as its module hands them to the parser."""

from trl import DatasetMixtureConfig, ModelConfig

from hf_gradkit import DPOConfig, RewardConfig, SFTConfig
from hf_gradkit.cli.audit_arguments import AuditArguments
from hf_gradkit.cli.data_arguments import DataArguments, ScriptArguments
from hf_gradkit.cli.reward import FoldArguments
from hf_gradkit.cli.score import ScoreArguments
from hf_gradkit.cli.select import SelectArguments

TYPES = {
    "audit": (DataArguments, AuditArguments),  # what both audits share, so that both can take the file
    "sft": (ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig),
    "dpo": (ScriptArguments, DPOConfig, ModelConfig, DatasetMixtureConfig),
    "reward": (ScriptArguments, RewardConfig, ModelConfig, DatasetMixtureConfig, FoldArguments),
    "score": (DataArguments, ScoreArguments),
    "select": (DataArguments, SelectArguments),
}
