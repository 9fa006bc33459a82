"""The options of `gradkit score`."""

from dataclasses import dataclass, field

from .._text import did_you_mean, listing
from ..scoring.difficulty_columns import SCORES
from ..scoring.difficulty_scorers import TRAINABLE
from ..scoring.saved_models import DTYPES
from ..scoring.sft_data import SFTFormat

REWARD = "reward"
METHODS = (REWARD, *SCORES)
TRL = SFTFormat()  # TRL's defaults
# Options that say something about SFT data only, with their defaults.
OF_SFT_DATA = {
    "checkpoints": None,
    "example_id_column": None,
    "parameters": TRAINABLE,
    "exact": True,
    "completion_only_loss": TRL.completion_only_loss,
    "assistant_only_loss": TRL.assistant_only_loss,
    "dataset_text_field": TRL.dataset_text_field,
    "truncation_mode": TRL.truncation_mode,
    "eos_token": TRL.eos_token,
}


@dataclass
class ScoreArguments:
    """What scores, how, and where to.

    Args:
        by (`list[str]`, *optional*, defaults to `["reward"]`): what the scores are: `"reward"` for reward margins of
            preference pairs; of SFT data one or several of `"loss"`, `"perplexity"`, `"el2n"`, `"grand"`,
            `"token_accuracy"`.
        model_name_or_path (`str`): folder or name of the model; for rewards, a folder of folds scores each pair by the
            model that did not see it.
        checkpoints (`list[str]`, *optional*): for SFT data, several folders instead: a column each, and their mean.
        output_dir (`str`): folder for the scored data.
        per_device_eval_batch_size (`int`, *optional*, defaults to `8`): pairs or examples in a batch of one process.
        max_length (`int`, *optional*): tokens that the model reads; by default its limit for pairs, and for SFT data
            1024, as in `trl.SFTConfig`.
        overwrite (`bool`, *optional*, defaults to `False`): replace other scores in `output_dir`.
        example_id_column (`str`, *optional*): column with ids of the examples; by default their content is hashed.
        parameters (`str`, *optional*, defaults to `"trainable"`): of which GraNd takes the gradient: all that can be
            trained, or a regular expression found in their names.
        exact (`bool`, *optional*, defaults to `True`): refuse GraNd where a gradient cannot be recorded.
        completion_only_loss, assistant_only_loss, dataset_text_field, truncation_mode, eos_token: as in
            `trl.SFTConfig`; give what the model is trained with.
    """

    by: list[str] = field(
        default_factory=lambda: [REWARD],
        metadata={
            "help": "What the scores are: 'reward' for reward margins of preference pairs; of SFT data one or several "
            "of 'loss', 'perplexity', 'el2n', 'grand', 'token_accuracy'."
        },
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub name of the model; a LoRA adapter as well. A folder that `gradkit reward --folds` "
            "wrote scores each pair by the model that did not see it."
        },
    )
    checkpoints: list[str] | None = field(
        default=None,
        metadata={
            "help": "For SFT data, several folders instead of `model_name_or_path`, such as early checkpoints of "
            "several seeds: a column each, and their mean."
        },
    )
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a model of the Hub."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})
    dtype: str = field(
        default="auto",
        metadata={
            "help": "Of the weights; 'auto' takes them as they were saved.",
            "choices": list(DTYPES),
        },
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "Which attention implementation to use."})
    output_dir: str | None = field(default=None, metadata={"help": "Folder for the scored data."})
    per_device_eval_batch_size: int = field(
        default=8, metadata={"help": "Pairs (twice as many sequences) or examples in a batch of one process."}
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Tokens that the model reads. By default its limit for pairs, cut at the left; for SFT data 1024, "
            "as in `trl.SFTConfig`."
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace other scores that are in `output_dir`."})
    use_cpu: bool = field(default=False, metadata={"help": "Score on the CPU though there is an accelerator."})
    example_id_column: str | None = field(
        default=None, metadata={"help": "Column with ids of SFT examples; by default their content is hashed."}
    )
    parameters: str = field(
        default=TRAINABLE,
        metadata={
            "help": "Of which GraNd takes the gradient: 'trainable' for all, or a regular expression found in their "
            r"names, such as 'layers\.31\.'."
        },
    )
    exact: bool = field(
        default=True,
        metadata={"help": "Refuse GraNd where a gradient cannot be recorded; false leaves it out, with a warning."},
    )
    completion_only_loss: bool | None = field(
        default=TRL.completion_only_loss,
        metadata={"help": "As in `trl.SFTConfig`: by default, completions only are learnt where there are prompts."},
    )
    assistant_only_loss: bool = field(
        default=TRL.assistant_only_loss, metadata={"help": "As in `trl.SFTConfig`: the assistant's turns only."}
    )
    dataset_text_field: str = field(
        default=TRL.dataset_text_field, metadata={"help": "As in `trl.SFTConfig`: column of plain text."}
    )
    truncation_mode: str = field(
        default=TRL.truncation_mode, metadata={"help": "As in `trl.SFTConfig`: 'keep_start' or 'keep_end'."}
    )
    eos_token: str | None = field(
        default=TRL.eos_token, metadata={"help": "As in `trl.SFTConfig`: ends an example, not the tokenizer's own."}
    )

    def __post_init__(self):
        self.by = [name for given in self.by for name in given.split(",") if name]
        for name in self.by or [""]:
            if name not in METHODS:
                raise ValueError(f"`by` is {name!r}.{did_you_mean(name, METHODS)} Known scores: {listing(METHODS)}.")
        if self.per_device_eval_batch_size < 1:
            raise ValueError(
                f"`per_device_eval_batch_size` must be at least 1, but it is {self.per_device_eval_batch_size}."
            )
        if REWARD in self.by:
            self._check_pairs()
        elif "grand" not in self.by:
            for name in ("parameters", "exact"):
                if getattr(self, name) != OF_SFT_DATA[name]:
                    raise ValueError(
                        f"`{name}` is {getattr(self, name)!r}, which is about GraNd, but `by` is {listing(self.by)}. "
                        "Add 'grand', or leave it out."
                    )

    def _check_pairs(self) -> None:
        if len(self.by) > 1:
            raise ValueError(
                f"`by` is {listing(self.by)}, but rewards are scores of preference pairs and the others of SFT data. "
                "Score them apart."
            )
        for name, default in OF_SFT_DATA.items():
            if getattr(self, name) != default:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)!r}, which is about SFT data, but `by` is 'reward', the score "
                    f"of preference pairs. Leave it out, or score by one of {listing(SCORES)}."
                )
