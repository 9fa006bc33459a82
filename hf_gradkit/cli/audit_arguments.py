"""The options of `gradkit audit`: common ones, and those of each kind of audit."""

from dataclasses import dataclass, field, fields
from typing import Any

from ..audit.evaluation import ALPHAS
from ..audit.extraction import CHANCES, SAMPLES
from ..audit.sampling import Sampling
from ..scoring.sft_data import SFTFormat
from ..trainers.options import parse_json


@dataclass
class AuditArguments:
    """What is audited, on which data, and where the report goes.

    Args:
        model_name_or_path (`str`): folder or name of the fine-tuned model, whole or a LoRA adapter.
        reference_model_name_or_path (`str`, *optional*): the model before fine-tuning; by default that with the
            adapter off.
        output_dir (`str`, *optional*): folder for the report; by default `_audit` in the model's folder.
        non_members_name (`str`, *optional*): file or data set of rows that were not trained on; `dataset_name` then
            has those that were. By default both come from the record of the hold-out.
        non_members_split (`str`, *optional*, defaults to `"train"`): its split.
        hold_out (`str`, *optional*): folder with the record of the hold-out; by default the model's folder.
        checkpoints (`bool`, *optional*, defaults to `False`): audit every checkpoint in the model's folder as well.
        max_examples (`int`, *optional*): rows to take at most of each side, drawn at random.
        show_text (`bool`, *optional*, defaults to `False`): write texts into the table of examples.
        max_length, truncation_mode, completion_only_loss, assistant_only_loss, dataset_text_field, eos_token: as in
            training; by default as the model's folder says, else TRL's defaults.
    """

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub name of the fine-tuned model, whole or a LoRA adapter."}
    )
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a model of the Hub."})
    reference_model_name_or_path: str | None = field(
        default=None, metadata={"help": "The model before fine-tuning; by default that with the adapter off."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})
    dtype: str = field(default="auto", metadata={"help": "Of the weights; 'auto' takes them as they were saved."})
    attn_implementation: str | None = field(default=None, metadata={"help": "Which attention implementation to use."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder for the report; by default `_audit` in the model's folder."}
    )
    non_members_name: str | None = field(
        default=None,
        metadata={"help": "File or data set of rows that were not trained on, instead of those of the hold-out."},
    )
    non_members_split: str = field(default="train", metadata={"help": "Split of `non_members_name`."})
    hold_out: str | None = field(
        default=None, metadata={"help": "Folder with the record of the hold-out; by default the model's folder."}
    )
    checkpoints: bool = field(
        default=False,
        metadata={"help": "Audit every checkpoint-* in the model's folder as well: a curve over training."},
    )
    max_examples: int | None = field(
        default=None, metadata={"help": "Rows to take at most of each side, drawn at random."}
    )
    show_text: bool = field(default=False, metadata={"help": "Write texts of examples into the table of examples."})
    max_length: int | None = field(default=None, metadata={"help": "Tokens that training kept of an example."})
    truncation_mode: str | None = field(default=None, metadata={"help": "'keep_start' or 'keep_end', as in training."})
    completion_only_loss: bool | None = field(
        default=None, metadata={"help": "Whether training learnt completions only."}
    )
    assistant_only_loss: bool | None = field(
        default=None, metadata={"help": "Whether training learnt the assistant's turns only."}
    )
    dataset_text_field: str | None = field(default=None, metadata={"help": "Column of plain text."})
    eos_token: str | None = field(default=None, metadata={"help": "Ended examples in training, if not the own one."})
    per_device_eval_batch_size: int = field(default=8, metadata={"help": "Examples in a batch of one process."})
    seed: int = field(default=0, metadata={"help": "Of everything that is drawn."})
    use_cpu: bool = field(default=False, metadata={"help": "Audit on the CPU though there is an accelerator."})

    def layout(self, recorded: dict[str, Any]) -> SFTFormat:
        """Return how tokens and labels were made in training: as asked for, else as recorded, else TRL's defaults."""
        names = [of.name for of in fields(SFTFormat)]
        found = {name: recorded[name] for name in names if recorded.get(name) is not None}
        found |= {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return SFTFormat(**found)

    @property
    def model_init_kwargs(self) -> dict[str, Any]:
        """What models are loaded with."""
        return {
            "revision": self.model_revision,
            "trust_remote_code": self.trust_remote_code,
            "attn_implementation": self.attn_implementation,
        }


@dataclass
class MembershipArguments:
    """Options of `gradkit audit membership`.

    Args:
        attacks (`list[str]`, *optional*): names of attacks; by default all that can run without a backward pass.
        attack_kwargs (`dict`, *optional*): their options, by name.
        document_column (`str`, *optional*): rows with the same value are one document.
        false_positive_rates (`list[float]`, *optional*): at which true positive rates are reported.
        bootstrap_rounds (`int`, *optional*, defaults to `1000`): resamples of the intervals.
    """

    attacks: list[str] | None = field(
        default=None,
        metadata={"help": "Attacks, such as loss flora min_k; by default all that can run without a backward pass."},
    )
    attack_kwargs: dict | str | None = field(
        default=None, metadata={"help": 'Options of attacks by name, as a mapping or JSON: \'{"min_k": {"k": 10}}\'.'}
    )
    document_column: str | None = field(
        default=None, metadata={"help": "Rows with the same value are one document, drawn together in resamples."}
    )
    false_positive_rates: list[float] = field(
        default_factory=lambda: list(ALPHAS), metadata={"help": "At which true positive rates are reported."}
    )
    bootstrap_rounds: int = field(default=1000, metadata={"help": "Resamples of the intervals."})

    def __post_init__(self):
        if isinstance(self.attack_kwargs, str):
            self.attack_kwargs = parse_json("attack_kwargs", self.attack_kwargs)


@dataclass
class ExtractionArguments:
    """Options of `gradkit audit extraction`.

    Args:
        prefix_tokens (`int`, *optional*, defaults to `50`): tokens of an example that the model is given.
        suffix_tokens (`int`, *optional*, defaults to `50`): tokens that it is to write.
        generations (`int`, *optional*, defaults to `8`): sampled guesses besides the greedy one; 0 writes nothing.
        temperature, top_k, top_p: how the model samples; `top_k` 0 keeps all tokens.
        samples (`list[int]`), chances (`list[float]`): n and p of (n, p)-discoverable extraction.
        canaries (`str`, *optional*): file with planted texts: columns `text` and `alternatives`.
        skip_short (`bool`, *optional*, defaults to `False`): leave out examples that are too short for the prefix.
    """

    prefix_tokens: int = field(default=50, metadata={"help": "Tokens of an example that the model is given."})
    suffix_tokens: int = field(default=50, metadata={"help": "Tokens that it is to write."})
    generations: int = field(
        default=8, metadata={"help": "Sampled guesses besides the greedy one; 0 leaves generation out."}
    )
    temperature: float = field(default=Sampling.temperature, metadata={"help": "Divides the logits."})
    top_k: int = field(default=Sampling.top_k, metadata={"help": "Tokens that are kept; 0 keeps all."})
    top_p: float = field(default=Sampling.top_p, metadata={"help": "Probability of the tokens that are kept."})
    samples: list[int] = field(
        default_factory=lambda: list(SAMPLES), metadata={"help": "Values of n in (n, p)-discoverable extraction."}
    )
    chances: list[float] = field(default_factory=lambda: list(CHANCES), metadata={"help": "Values of p."})
    canaries: str | None = field(
        default=None, metadata={"help": "File with planted texts: columns `text` and `alternatives`."}
    )
    skip_short: bool = field(
        default=False, metadata={"help": "Leave out examples that are too short for the prefix, and say how many."}
    )

    @property
    def sampling(self) -> Sampling:
        """How the model samples."""
        return Sampling(self.temperature, self.top_k or None, self.top_p)


@dataclass
class HoldOutArguments:
    """Options of `gradkit audit hold_out`.

    Args:
        output_dir (`str`): folder of the model that is to be trained.
        fraction (`float`, *optional*, defaults to `0.1`): share of the rows to hold out.
        seed (`int`, *optional*, defaults to `0`): of the draw.
        id_column (`str`, *optional*): ids of rows, kept in the record.
        document_column (`str`, *optional*): rows with the same value are kept together.
        drop_duplicates (`bool`, *optional*, defaults to `False`): leave out rows whose content an earlier row has,
            whatever its id and document; a defence, since copies are memorised first.
        overwrite (`bool`, *optional*, defaults to `False`): replace another hold-out that is recorded there.
    """

    output_dir: str | None = field(default=None, metadata={"help": "Folder of the model that is to be trained."})
    fraction: float = field(default=0.1, metadata={"help": "Share of the rows to hold out."})
    seed: int = field(default=0, metadata={"help": "Of the draw."})
    id_column: str | None = field(default=None, metadata={"help": "Ids of rows, kept in the record."})
    document_column: str | None = field(default=None, metadata={"help": "Rows with the same value are kept together."})
    drop_duplicates: bool = field(
        default=False,
        metadata={"help": "Leave out rows that are copies of earlier ones: copies are memorised first."},
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace another hold-out that is recorded there."})
    use_cpu: bool = field(default=False, metadata={"help": "Nothing is computed on an accelerator either way."})


@dataclass
class SecretsArguments:
    """Options of `gradkit audit secrets`.

    Args:
        output_dir (`str`, *optional*, defaults to `"gradkit_demo/data"`): folder for `records.jsonl` and
            `canaries.jsonl`.
        rows (`int`, *optional*, defaults to `600`): records that differ.
        copies (`int`, *optional*, defaults to `1`): how often every fifth of them is there.
        canaries (`int`, *optional*, defaults to `16`): canaries, each with 255 alternatives.
        seed (`int`, *optional*, defaults to `0`): of the draw.
    """

    output_dir: str = field(default="gradkit_demo/data", metadata={"help": "Folder for the two files."})
    rows: int = field(default=600, metadata={"help": "Records that differ."})
    copies: int = field(default=1, metadata={"help": "How often every fifth of them is there."})
    canaries: int = field(default=16, metadata={"help": "Canaries, each with 255 alternatives."})
    seed: int = field(default=0, metadata={"help": "Of the draw."})
    use_cpu: bool = field(default=False, metadata={"help": "Nothing is computed on an accelerator either way."})
