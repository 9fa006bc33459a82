"""DPOTrainer: TRL's, with weights of pairs and further objectives."""

import logging
from dataclasses import replace
from typing import Any

import torch
import trl
from datasets import Dataset
from torch import Tensor

from .. import _compat
from ..data.columns import INFO, ExampleInfo
from ..objectives.base import PreferenceRecord, dpo_losses
from .balancing import build_balancing
from .data_filter import filter_training_data
from .gathering import gather_rows
from .margins import margin_temperature, with_margins
from .mixin import ExampleWeightingMixin
from .pair_batch import PairBatch
from .pair_checks import check_prepared_pairs, check_raw_pairs
from .policy_tap import PolicyTap
from .preference_options import PreferenceOptions, Term
from .weigher import ExampleWeigher

logger = logging.getLogger(__name__)


class DPOTrainer(ExampleWeightingMixin, trl.DPOTrainer):
    """A drop-in for [`trl.DPOTrainer`] with weights of pairs, MADPO, RPO and beta-DPO.

    With every option of [`DPOConfig`] that is ours left at its default, or with TRL's own configuration, this is
    TRL's trainer. Otherwise TRL still computes its own loss types, on the log-probabilities cut off from the model;
    weights enter that loss through the path it has for WPO, our objectives are added to it, and what reaches the model
    is the gradient of their sum. The reported loss is the loss that is optimised.

    Example:

    ```python
    from hf_gradkit import DPOConfig, DPOTrainer

    trainer = DPOTrainer(
        model="Qwen/Qwen3-0.6B",
        args=DPOConfig("out", weighting="madpo", reward_model_name_or_path="runs/reward"),
        train_dataset=dataset,
    )
    trainer.train()
    ```

    Args:
        reward_model: makes the reward margins where the data lacks them, instead of `reward_model_name_or_path`.
        reward_processing_class: its tokenizer; the one it was loaded with when None.
        (The others are those of [`trl.DPOTrainer`].)

    Raises:
        ValueError: for options that are wrong or do not go together, columns that are missing, bad weights or margins,
            empty answers, an empty data set; before anything trains.
        NonFiniteLossError: when a pair's loss is not finite; before the optimizer steps.
    """

    _options: PreferenceOptions
    _rows_per_example = 2

    def __init__(self, *positional, reward_model=None, reward_processing_class=None, **keywords):
        self._reward_model, self._reward_tokenizer = reward_model, reward_processing_class
        self._temperature = 1.0
        super().__init__(**filter_training_data(trl.DPOTrainer.__init__, positional, keywords))
        self._reward_model = None  # its memory is the policy's now
        if self._options.active:
            self._adapter = self._new_adapter()
        self._balancing = build_balancing(self.args, self)

    def _read_options(self, args: Any) -> PreferenceOptions:
        options = PreferenceOptions.of(args)
        if self._reward_model is not None and options.columns.margin is None:
            raise ValueError(
                f"A `reward_model` was given, but `weighting` is {options.name!r}, which uses no reward margins. Set "
                "weighting='madpo', or leave the reward model out."
            )
        if self._reward_model is not None and args.reward_model_name_or_path is not None:
            raise ValueError(
                f"Both a `reward_model` and `reward_model_name_or_path` ({args.reward_model_name_or_path!r}) were "
                "given. Keep one of them."
            )
        return options

    # ---- data ---------------------------------------------------------------------------------------------------

    def _attach_columns(self, dataset: Any, args: Any) -> Any:
        check_raw_pairs(dataset)
        self._rows_given = len(dataset) if isinstance(dataset, Dataset) else None
        if self._options.columns.margin is None:
            return super()._attach_columns(dataset, args)
        model = self._reward_model if self._reward_model is not None else args.reward_model_name_or_path
        dataset = with_margins(
            dataset, self._options, model, self._reward_tokenizer, batch_size=args.per_device_eval_batch_size
        )
        dataset = super()._attach_columns(dataset, args)
        self._temperature = margin_temperature(dataset, self._options)
        return dataset

    def _check_combination(self) -> None:
        super()._check_combination()
        if _compat.has_vision_data(self):
            raise ValueError(
                "The training data has images, which weights and objectives of pairs do not support yet. Set "
                "weighting='none', use TRL's loss types and leave out the example columns to train as with TRL."
            )
        check_prepared_pairs(self.train_dataset, self.args.max_length, self._rows_given)

    # ---- the run ------------------------------------------------------------------------------------------------

    def _make_weigher(self) -> ExampleWeigher:
        weigher = super()._make_weigher()
        weigher.temperature = self._temperature
        return weigher

    def _start(self, max_steps: int, state: dict[str, Any] | None) -> None:
        super()._start(max_steps, state)
        self._adapter = self._new_adapter()
        if self._adapter is not None and state is not None:
            if "adapter" in state:
                self._adapter.load_state_dict(state["adapter"])
            else:
                logger.warning(
                    "The checkpoint was written without beta-DPO's averages (another `loss_type`): they start anew."
                )

        if self._balancing is not None and self._balancing.state is not None:
            self._balancing.state.load_state_dict((state or {}).get("balancing", {}))

    def _new_adapter(self) -> Any:
        adapters = [objective.adapter(self.beta, self.args.seed) for objective in self._options.objectives]
        return next((adapter for adapter in adapters if adapter is not None), None)  # the options allow one

    def _training_state(self) -> dict[str, Any]:
        state = super()._training_state()
        if self._adapter is not None:
            state["adapter"] = self._adapter.state_dict()
        if self._balancing is not None and self._balancing.state is not None:
            state["balancing"] = self._balancing.state.state_dict()
        return state

    def _run_facts(self) -> dict[str, Any]:
        facts = super()._run_facts() | {"loss_type": [term.name for term in self._options.terms]}
        if self._options.columns.margin is not None:
            facts["margin_temperature"] = self._temperature
        return facts

    # ---- the loss -----------------------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        info = inputs.pop(INFO, None)
        if info is None and not self._options.objectives:  # all is TRL's, and evaluation is not weighted
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if info is not None:
            self._weigh_ahead(model)
        inputs = self._with_reference(inputs)
        weighted = info is not None and self._options.weighs
        # TRL's own "sft" has no value of a single pair: with weights it is ours to compute.
        of_trl = [t for t in self._options.terms if t.objective is None and not (weighted and t.name == "sft")]
        ours = [term for term in self._options.terms if term not in of_trl]
        encoded = weighted and bool(of_trl)
        batch = PairBatch(inputs, info)
        hinge = encoded and any(term.name == "hinge" for term in of_trl)  # TRL weights it in place
        with PolicyTap(model, lambda outputs: self._see(batch, outputs, encoded), mutates=hinge) as tap:
            with _compat.dpo_loss(self, [t.name for t in of_trl], [t.weight for t in of_trl], encoded):
                result = super().compute_loss(tap, inputs, return_outputs, num_items_in_batch)
            loss, outputs = result if return_outputs else (result, None)
            for term in ours:
                loss = loss + term.weight * self._term(term, batch)
            loss = tap.join(loss, self._balancing if info is not None else None)
        return (loss, outputs) if return_outputs else loss

    def _with_reference(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return the batch with the reference's log-probabilities in it, as if they had been precomputed."""
        if "ref_chosen_logps" in inputs:
            return inputs
        chosen, rejected = self.compute_ref_log_probs(
            self.ref_model if self.ref_model is not None else self.model, inputs
        )
        return {**inputs, "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}

    def _see(self, batch: PairBatch, outputs: Any, encoded: bool) -> None:
        """Read the policy's outputs, weigh the pairs, and hand TRL the weights if it is to use them."""
        batch.read(outputs.log_probs, self.beta, self.ld_alpha)
        if batch.info is None:
            return
        losses = dpo_losses(batch.detached())
        batch.weights, batch.column = self._pair_weights(losses, batch)
        if encoded:
            token_logps = batch.token_logps.detach()
            _compat.encode_pair_weights(outputs, token_logps, batch.mask, batch.weights, wpo=self.args.use_weighting)
        self._log_drift(batch.detached())

    def _pair_weights(self, losses: Tensor, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Return what multiplies the preference terms of each pair, and its regularisers. Both (n,)"""
        sums, tokens = losses.double() * batch.tokens, batch.tokens
        u = self._weigher.weigh(sums, tokens, batch.info, self.state.global_step).to(losses)
        column = batch.info.weight.to(losses)
        if self._options.normalize_weights:
            scale = self._step_totals["examples"] / self._step_totals["weighted_examples"].clamp(min=1e-12)
            u, column = u * scale.to(u), column * scale.to(u)
        return u, column

    def _term(self, term: Term, batch: PairBatch) -> Tensor:
        """Return the value of one term that is ours, over this rank's pairs. ()"""
        if term.objective is None:  # TRL's "sft": a mean over the tokens of the chosen answers, regularisers' weights
            return (batch.column * batch.chosen_nll).sum() / batch.chosen_tokens.sum().clamp(min=1)
        record, scale = batch.record, 1.0
        if self._adapter is not None and batch.info is not None:
            record, scale = self._adapt(term.name, batch)
        losses = batch.weights * _values(term, "preference", record)
        return (scale * (losses + batch.column * _values(term, "regulariser", record))).mean()

    def _adapt(self, name: str, batch: PairBatch) -> tuple[PreferenceRecord, Tensor]:
        """Return the record at the micro-batch's beta, and what makes a mean over all pairs one over the kept ones."""
        margins = batch.detached().margins
        everybody, mine = gather_rows(self.accelerator, margins.double()[:, None])
        adaptation = self._adapter.adapt(everybody[:, 0])
        for figure, value in adaptation.figures.items():
            self._metrics["train"][f"{name}/{figure}"].append(value)
        # DDP averages over the ranks, each of which divides by its own number of pairs.
        share = len(margins) * self.accelerator.num_processes / adaptation.keep.sum()
        return replace(batch.record, beta=adaptation.beta), (adaptation.keep[mine] * share).to(margins)

    def _log_drift(self, record: PreferenceRecord) -> None:
        """Log how far the log-probabilities of the answers have moved from the reference's, in nats."""
        chosen = record.chosen_logps - record.ref_chosen_logps
        rejected = record.rejected_logps - record.ref_rejected_logps
        local = torch.stack([chosen.sum(), rejected.sum(), torch.ones_like(chosen).sum()])
        chosen, rejected, count = self.accelerator.gather(local[None]).sum(0).tolist()
        self._metrics["train"]["logps/chosen_drift"].append(chosen / count)
        self._metrics["train"]["logps/rejected_drift"].append(rejected / count)

    # ---- what the mixin asks ------------------------------------------------------------------------------------

    def _divides_by_totals(self, batch: Any) -> bool:
        return self._options.normalize_weights

    def _label_tokens(self, batch: Any, info: ExampleInfo) -> Tensor:
        chosen, rejected = batch["completion_mask"][:, 1:].sum(1).chunk(2)
        return chosen + rejected

    def _example_losses(self, model: Any, inputs: dict[str, Any], info: ExampleInfo) -> tuple[Tensor, Tensor]:
        inputs = self._with_reference(inputs)
        batch = PairBatch(inputs, info)
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        tokens = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        outputs = model(**tokens, labels=labels, use_cache=False, fused_lm_head=True)
        batch.read(outputs.log_probs, self.beta, self.ld_alpha)
        return dpo_losses(batch.record).double() * batch.tokens, batch.tokens


def _values(term: Term, part: str, record: PreferenceRecord) -> Tensor:
    """Return one part of an objective's loss, one value a pair, or say that it is not that. (n,)"""
    values = getattr(term.objective, part)(record)
    if not isinstance(values, Tensor) or values.shape != record.chosen_logps.shape:
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"`{part}` of the objective {term.name!r} returned {shape} for {len(record.chosen_logps)} pairs, where "
            "one value each is needed."
        )
    return values
