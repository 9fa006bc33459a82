"""The model that is audited, and the model before fine-tuning: one after the other, never two in memory unasked."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from peft import PeftConfig, PeftModel

from ..scoring import fingerprints
from ..scoring.language_models import load_language_model
from ..scoring.processes import on_main, world
from ..scoring.records import LIVE, model_name
from ..scoring.saved_models import check_dtype, load_tokenizer
from ..scoring.sharding import is_split, launched_to_split, split_model

TARGET, REFERENCE = "target", "reference"


@dataclass(frozen=True)
class AuditedModel:
    """What is audited, against what.

    Attributes:
        model: a folder, a model of the Hub, or a causal language model in memory; whole, or with a LoRA adapter.
        reference: the model before fine-tuning, given likewise. With an adapter it is the same weights with the
            adapter switched off, unless another one is given; without either there is none.
        dtype: of the weights of models that are loaded; "auto" as they were saved. Under FSDP2 and ZeRO-3 those are
            split over the processes.
        device: where models run; where they are, or the process's own device, when None.
        options: further arguments of `from_pretrained`.
    """

    model: Any
    reference: Any = None
    dtype: Any = "auto"
    device: Any = None
    options: dict[str, Any] | None = None

    def __post_init__(self):
        check_dtype(self.dtype)
        for given in (self.model, self.reference):
            if given is not None and not _is_saved(given) and is_split(given):
                raise ValueError(
                    f"The model {_name(given)!r} in memory is split over the processes, so that none of them can tell "
                    "its weights. Save it and name its folder; PrivacyAuditCallback audits a model while it trains."
                )

    @cached_property
    def split(self) -> str | None:
        """By what a model that is loaded is split over the processes, "FSDP2" or "ZeRO-3", or None.

        Raises:
            ValueError: if `device_map` is to spread it as well.
        """
        how = launched_to_split()
        if how is not None and (self.options or {}).get("device_map") is not None:
            raise ValueError(
                f"`device_map` spreads a model over the devices of one process, but the launch configuration ({how}) "
                "splits it over the processes. Leave `device_map` out, or start one process."
            )
        return how

    @cached_property
    def adapter(self) -> bool:
        """Whether the model has an adapter that can be switched off."""
        if not _is_saved(self.model):
            return isinstance(self.model, PeftModel)
        return (self._folder(self.model) / "adapter_config.json").exists()

    @cached_property
    def passes(self) -> tuple[str, ...]:
        """The forward passes that there are: "target", and "reference" where there is one."""
        return (TARGET, REFERENCE) if self.reference is not None or self.adapter else (TARGET,)

    @property
    def name(self) -> str:
        """What the model is called."""
        return _name(self.model)

    @property
    def reference_name(self) -> str | None:
        """What the reference is called, or None without one."""
        if self.reference is not None:
            return _name(self.reference)
        return f"{self._base_name} (adapter off)" if self.adapter else None

    @property
    def _base_name(self) -> str:
        if not _is_saved(self.model):
            return model_name(self.model.get_base_model()) or "the base"
        return PeftConfig.from_pretrained(str(self._folder(self.model))).base_model_name_or_path

    def content(self, which: str) -> str:
        """Return a hash of all that can change what a pass says; the same on every process."""
        if which == REFERENCE and self.reference is None:
            if not _is_saved(self.model):
                return fingerprints.digest("adapter off", on_main(lambda: fingerprints.hash_module(self.model)))
            return fingerprints.digest(self._hash(self._base_name), str(self.dtype))
        given = self.model if which == TARGET else self.reference
        return fingerprints.digest(self._hash(given), str(self.dtype))

    @property
    def saved_hash(self) -> str | None:
        """Hash of the files of the model that is audited, or None for one in memory."""
        return fingerprints.hash_folder(self._folder(self.model)) if _is_saved(self.model) else None

    def _hash(self, given: Any) -> str:
        if not _is_saved(given):
            return on_main(lambda: LIVE + fingerprints.hash_module(given))
        return on_main(lambda: fingerprints.hash_folder(self._folder(given)))

    def _folder(self, given: Any) -> Any:
        revision = (self.options or {}).get("revision") if given is self.model else None
        return fingerprints.find_model(str(given), revision)

    def tokenizer(self, which: str = TARGET) -> Any:
        """Return the tokenizer that was saved with a model, or None where there is none.

        Raises:
            ValueError: for a model in memory, which has none.
        """
        given = self.model if which == TARGET else self.reference
        if not _is_saved(given):
            return None
        known = {
            name: self.options[name] for name in ("revision", "trust_remote_code") if name in (self.options or {})
        }
        if which == REFERENCE:
            known.pop("revision", None)
        try:
            return load_tokenizer(str(given), **known)
        except (OSError, ValueError):  # saved without a tokenizer
            return None

    def open(self, wanted: tuple[str, ...], trainable: bool = False) -> Iterator[tuple[str, Any]]:
        """Yield the passes that are wanted, each with its model, ready to score in evaluation mode.

        An adapter's base is yielded with the same weights in memory; any other reference is loaded when the target is
        gone. With `trainable`, an adapter that is loaded requires gradients.
        """
        shared = self.reference is None and self.adapter
        if TARGET in wanted or (REFERENCE in wanted and shared):
            with self._opened(self.model, trainable) as model:
                if TARGET in wanted:
                    yield TARGET, model
                if REFERENCE in wanted and shared:
                    with model.disable_adapter():
                        yield REFERENCE, model
        if REFERENCE in wanted and not shared:
            with self._opened(self.reference) as model:
                yield REFERENCE, model

    @contextmanager
    def _opened(self, given: Any, trainable: bool = False) -> Iterator[Any]:
        if not _is_saved(given):
            training, device = given.training, given.device
            try:
                yield given.eval() if self.device is None else given.eval().to(self.device)
            finally:
                given.train(training).to(device)
            return
        options = dict(self.options or {})
        if given is not self.model:
            options.pop("revision", None)
        model = load_language_model(str(given), self.dtype, trainable, **options)
        if self.split is not None:
            model = split_model(model, self.split)
        elif "device_map" not in options:
            model.to(self.device or world().device)
        yield model
        del model
        if torch.accelerator.is_available():
            clear_device_cache(garbage_collection=True)  # the next model needs the room


def _is_saved(given: Any) -> bool:
    return isinstance(given, (str, os.PathLike))


def _name(given: Any) -> str:
    return str(given) if _is_saved(given) else model_name(given) or type(given).__name__
