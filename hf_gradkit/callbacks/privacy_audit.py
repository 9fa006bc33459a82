"""PrivacyAuditCallback: after each epoch, how well members are told from held-out examples, while training runs."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import DistributedType
from datasets import Dataset
from peft import PeftModel
from torch.distributed.fsdp import FSDPModule
from transformers import TrainerCallback

from .._backends import SHARDED, backend, check_backend
from .._text import check_whole_number
from ..audit.attacks import TokenRecord, build_attacks
from ..audit.evaluation.roc import area, rate_at, roc
from ..audit.examples import Examples, token_hashes
from ..audit.token_records import LOG_PROBS, QuietScorer, outputs_for, token_records
from ..data.hold_out import HoldOutRecord
from ..data.private_files import make_private_folder
from ..scoring import (
    SFTFormat,
    TokenRow,
    fingerprints,
    load_scores,
    score_rows,
    token_statistics,
    tokenize_sft,
)
from ..scoring.processes import on_main, world
from ..scoring.token_rows import IGNORED
from .figures_log import FiguresLog

logger = logging.getLogger(__name__)

FOLDER = "_privacy_audit"  # in the run's folder; the Trainer never pushes it
NAME = "privacy_audit"


class PrivacyAuditCallback(TrainerCallback):
    """Audits the model for membership inference at the end of each epoch: what training gives away as it goes on.

        trainer.add_callback(PrivacyAuditCallback(trainer=trainer))

    Members are a random part of the training data, non-members of the evaluation data, both as the trainer prepared
    them: the same tokens, labels and cuts; of preference pairs the prompt with its chosen answer, of which the answer
    is looked at. The reference is the model as it was before the first step; with an adapter
    the model with the adapter off. The audit runs in evaluation mode, and leaves training as it would have been.

    Figures: `privacy_audit/auc_<attack>` and `/tpr_<attack>` (true positive rate at `false_positive_rate`),
    `/member_loss` and `/held_out_loss` in nats a token. They go to `<output_dir>/privacy_audit.jsonl` and to the log
    history; with `trainer` also to the trackers. `gradkit audit membership` gives intervals and the blind gate.

    Args:
        trainer: the trainer, for its data and its trackers.
        members: instead of the trainer's training data: a data set as for `trl.SFTTrainer`, raw or tokenised.
        non_members: instead of its evaluation data, likewise.
        attacks: names of membership attacks; all that need no backward pass when None.
        attack_kwargs: their options, by name.
        false_positive_rate: at which true positive rates are reported.
        max_examples: of each side.
        batch_size: of one process; the trainer's evaluation batch when None.
        seed: of the draw.

    Raises:
        ValueError: for options out of their domain; when training begins, for data that cannot be audited: none to
            compare with, no tokens, or members among the non-members.
    """

    def __init__(
        self,
        trainer: Any = None,
        members: Dataset | None = None,
        non_members: Dataset | None = None,
        attacks: Sequence[str] | None = ("loss", "flora", "min_k", "error_zone"),
        attack_kwargs: dict[str, dict[str, Any]] | None = None,
        false_positive_rate: float = 0.01,
        max_examples: int = 512,
        batch_size: int | None = None,
        seed: int = 0,
    ):
        if not 0 < false_positive_rate < 1:
            raise ValueError(f"`false_positive_rate` must lie above 0 and below 1, but it is {false_positive_rate!r}.")
        check_whole_number("max_examples", max_examples, 2)
        names = None if attacks is None else list(attacks)
        self.attacks = build_attacks(names, attack_kwargs or {}, reference=True)
        for name, attack in self.attacks.items():
            if attack.record_type is not TokenRecord:
                raise ValueError(
                    f"The attack {name!r} needs a backward pass for each example, which is too slow while training "
                    "runs. Leave it out here, and audit the saved model with it (`gradkit audit membership`)."
                )
        self.alpha, self.max_examples, self.batch_size, self.seed = false_positive_rate, max_examples, batch_size, seed
        self.figures = FiguresLog(NAME, trainer)
        self._trainer, self._given = trainer, (members, non_members)
        self._examples: Examples | None = None
        self._reference: dict[str, np.ndarray] | None = None

    # ---- the run ------------------------------------------------------------------------------------------------

    def on_train_begin(self, args, state, control, model=None, processing_class=None, **kwargs):
        check_backend(backend(), "The privacy audit's figures", "leave the monitor out", SHARDED)
        _check_model(model, processing_class)
        self.figures.start(args.output_dir, state.global_step, state.is_world_process_zero)
        self._examples = self._load_examples(processing_class)
        self._unsound = HoldOutRecord.read(args.output_dir) is None
        if self._unsound and state.is_world_process_zero:
            logger.warning(
                f"There is no record of a hold-out in {args.output_dir!r}: the evaluation data may differ from the "
                "training data by more than not being trained on. Hold it out at random first (hf_gradkit.audit."
                "hold_out), or read the privacy audit's figures as unsound."
            )
        self._reference = self._score_reference(args, state, model)

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        columns = {"target": self._score(args, model, f"step-{state.global_step}", outputs_for(self.attacks))}
        if isinstance(model, PeftModel):
            with model.disable_adapter():
                columns["reference"] = self._score(args, model, f"base-{state.global_step}", (LOG_PROBS,))
        else:
            columns["reference"] = self._reference
        self.figures.add(state.global_step, self._evaluate(columns), {"epoch": state.epoch, "unsound": self._unsound})

    def on_log(self, args, state, control, **kwargs):
        self.figures.after_log(state.log_history)

    # ---- data ---------------------------------------------------------------------------------------------------

    def _load_examples(self, tokenizer: Any) -> Examples:
        sides = []
        for given, name in zip(self._given, ("train_dataset", "eval_dataset"), strict=True):
            found = given if given is not None else getattr(self._trainer, name, None)
            if not isinstance(found, Dataset):
                raise ValueError(
                    f"The privacy audit has no {'members' if name == 'train_dataset' else 'non-members'}: `{name}` is "
                    f"a {type(found).__name__}, and a `datasets.Dataset` is needed. Give the trainer one, or give "
                    "PrivacyAuditCallback `members` and `non_members`, and `trainer` where they are the trainer's."
                )
            sides.append(self._rows(found, tokenizer, name))
        rows = [row for side in sides for row in side]
        members = np.arange(len(rows)) < len(sides[0])
        examples = Examples(rows, members, np.arange(len(rows)), tokenizer, None)
        examples.check()
        return examples

    def _rows(self, dataset: Dataset, tokenizer: Any, name: str) -> list[TokenRow]:
        """Return a random part of one side's examples; packed rows are taken apart into the documents in them."""
        columns = dataset.column_names
        if {"prompt_ids", "chosen_ids"} <= {*columns}:
            rows = _chosen_answers(dataset, getattr(self._trainer, "args", None))
        elif "chosen" in columns:
            raise ValueError(
                f"`{name}` has pairs that no trainer has prepared. Leave `members` and `non_members` out to take the "
                "trainer's, or give a text, or a prompt and a completion, each."
            )
        else:
            # What the trainer prepared is cut already, and packed rows are longer than an example may be.
            packed = "seq_lengths" in columns
            whole = dataset.remove_columns("seq_lengths") if packed else dataset
            rows = tokenize_sft(whole, tokenizer, SFTFormat(max_length=None))
            if packed:
                rows = [part for row in rows for part in _documents(row, dataset[row.row]["seq_lengths"])]
        rows = [row for row in rows if row.label_tokens]  # training learns nothing from the others either
        chosen = np.sort(np.random.default_rng(self.seed).permutation(len(rows))[: self.max_examples])
        return [rows[i] for i in chosen]

    # ---- scores -------------------------------------------------------------------------------------------------

    def _score_reference(self, args: Any, state: Any, model: Any) -> dict[str, np.ndarray] | None:
        """Return what the model says before its first step; a resumed run has it from its first part."""
        if isinstance(model, PeftModel):
            return None  # the adapter is switched off whenever it is needed
        if state.global_step == 0:
            return self._score(args, model, "reference", (LOG_PROBS,), keep=True)
        folder, key = self._place(args, "reference")
        kept = load_scores(folder, key, (LOG_PROBS,), len(self._examples.rows))
        if kept is None:
            raise ValueError(
                f"The run goes on from step {state.global_step}, and {str(folder)!r} does not hold what the model "
                "said of these examples before its first step, by which they are compared. Go on with the same data, "
                "seed and `max_examples`, or leave the privacy audit out."
            )
        return kept

    def _place(self, args: Any, name: str) -> tuple[Path, str]:
        key = fingerprints.digest(NAME, name, token_hashes(self._examples.rows))
        return Path(args.output_dir) / FOLDER / name, key

    def _score(
        self, args: Any, model: Any, name: str, outputs: tuple[str, ...], keep: bool = False
    ) -> dict[str, np.ndarray]:
        """Return a model's figures of all examples, scored by all processes. (N,) of arrays each"""
        folder, key = self._place(args, name)
        on_main(lambda: make_private_folder(folder.parent))
        training = model.training
        model.eval()
        try:
            with token_statistics(model, outputs, one_pass=True) as statistics:
                columns = score_rows(
                    self._examples.rows,
                    QuietScorer(statistics, outputs),
                    folder,
                    key if keep else f"{key}-{name}",
                    self.batch_size or args.per_device_eval_batch_size,
                    unit="example",
                    replace=True,
                    in_step=backend() in (DistributedType.FSDP, DistributedType.DEEPSPEED),
                ).columns
        finally:
            model.train(training)
            for module in model.modules():
                if isinstance(module, FSDPModule):  # keeps its last parameters whole until a backward pass
                    module.reshard()
        world().wait_for_everyone()
        if not keep:
            on_main(lambda: shutil.rmtree(folder, ignore_errors=True))
        return columns

    def _evaluate(self, columns: dict[str, dict[str, np.ndarray]]) -> dict[str, float]:
        """Return the figures of one audit."""
        examples = self._examples
        records = token_records(columns, examples.learnt_zlib_bytes)
        figures: dict[str, float] = {}
        for name, attack in self.attacks.items():
            rates = roc(np.asarray(attack(records)), examples.members)
            figures[f"{NAME}/auc_{name}"] = float(area(*rates)[0])
            figures[f"{NAME}/tpr_{name}"] = float(rate_at(*rates, self.alpha)[0][0])
        for side, name in ((True, "member_loss"), (False, "held_out_loss")):
            of_side = [r.target.log_probs for r, m in zip(records, examples.members, strict=True) if m == side]
            figures[f"{NAME}/{name}"] = -float(np.concatenate(of_side).mean())
        return figures


def _check_model(model: Any, tokenizer: Any) -> None:
    """Raise `ValueError` for what is no causal language model, or one without its tokenizer."""
    embeddings = getattr(model, "get_output_embeddings", lambda: None)()
    if embeddings is None or getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(
            f"`monitors` or a callback asks for a privacy audit, but {type(model).__name__} is no causal language "
            "model, so the loss of a text is not known token by token. Leave the audit out."
        )
    if tokenizer is None:
        raise ValueError(
            "The privacy audit reads texts, but the trainer has no tokenizer. Give it `processing_class`."
        )


def _chosen_answers(dataset: Dataset, args: Any) -> list[TokenRow]:
    """Return the prompts with their chosen answers as DPO trains on them, the answers to be predicted."""
    longest = getattr(args, "max_length", None)
    end = getattr(args, "truncation_mode", "keep_start") == "keep_end"
    kept = slice(None) if longest is None else slice(-longest, None) if end else slice(longest)
    rows = []
    for number, row in enumerate(dataset.with_format(None).select_columns(["prompt_ids", "chosen_ids"])):
        ids = np.array(row["prompt_ids"] + row["chosen_ids"], dtype=np.int64)
        labels = np.where(np.arange(len(ids)) < len(row["prompt_ids"]), IGNORED, ids)
        rows.append(TokenRow(ids[kept], labels[kept], number))
    return rows


def _documents(row: TokenRow, lengths: Sequence[int]) -> list[TokenRow]:
    """Return the documents of a packed row."""
    ends = np.cumsum(lengths)[:-1]
    parts = zip(np.split(row.input_ids, ends), np.split(row.labels, ends), strict=True)
    return [TokenRow(ids, labels, row.row) for ids, labels in parts]
