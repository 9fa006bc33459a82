"""What the trainers share around the Hub: a page that tells the truth, and a word about pushes that failed."""

import inspect
import logging
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from ..audit.summary import find_audits
from ..publishing.facts import ModelFacts, Progress
from ..publishing.hub import explained
from ..publishing.page import model_page, write_page
from ..publishing.plots import draw
from ..publishing.sources import base_model, card_metadata
from ..reporting.run_info import describe_run
from ..reporting.runs import Run

logger = logging.getLogger(__name__)


class HubMixin:
    """Goes before a `transformers.Trainer` subclass.

    - `create_model_card` writes hf_gradkit's page into the output folder; `gradkit push` writes the same one.
    - A push that the Hub refuses says why and what to do, before the training where it can be known then, and a push
      in the background that failed is told of.
    """

    def init_hf_repo(self, *positional, **keywords):
        repo = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        with explained(repo, "start again when that is put right, or without push_to_hub"):
            return super().init_hf_repo(*positional, **keywords)

    def create_model_card(self, *positional, **keywords) -> None:
        """Write the model's page, `README.md`, into the output folder, with pictures if the run is pushed at all.

        Args: those of the parent, by name; `license`, `language`, `tags`, `dataset_name` or `dataset`,
            `finetuned_from` and `model_name` are on the page.
        """
        if not self.is_world_process_zero():
            return
        parameters = inspect.signature(super().create_model_card).parameters
        given = dict(zip(parameters, positional, strict=False)) | keywords
        folder = Path(self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        facts = self._model_facts(folder, given)
        drawn = []
        if self.args.push_to_hub or self.hub_model_id is not None:
            try:
                drawn = draw(facts.run, folder)
            except ImportError as error:
                logger.warning(f"The model's page has no pictures: {error}")
        write_page(model_page(facts, drawn), folder)

    def _model_facts(self, folder: Path, given: dict[str, Any]) -> ModelFacts:
        """Return what the trainer knows of its model; the folder may be of an earlier run, or empty yet."""
        info = describe_run(self, self._run_facts())
        model = self.accelerator.unwrap_model(self.model)
        adapters = getattr(model, "peft_config", None) or {}
        adapter = next(iter(adapters.values())).to_dict() if adapters else {}
        state = {name: getattr(self.state, name, None) for name in ("epoch", "best_global_step")}
        state |= {name: getattr(self.state, name, None) or 0 for name in ("global_step", "max_steps")}
        data = given.get("dataset_name") or given.get("dataset") or []
        metadata = {
            "license": given.get("license") or card_metadata(folder).get("license"),
            "language": given.get("language") or card_metadata(folder).get("language"),
            "tags": [given["tags"]] if isinstance(given.get("tags"), str) else list(given.get("tags") or []),
            "datasets": [data] if isinstance(data, str) else list(data),
        }
        repo = self.hub_model_id or self.args.hub_model_id
        return ModelFacts(
            folder=folder,
            name=given.get("model_name") or (repo or folder.absolute().name).rpartition("/")[2],
            repo=repo,
            revision=self.args.hub_revision,
            run=Run(folder.name, folder, list(self.state.log_history), info),
            progress=Progress.of(state, info["settings"]),
            base=base_model(folder, info=info, named=given.get("finetuned_from")),
            config=model.config.to_dict() if hasattr(model, "config") else {},
            adapter=_plain(adapter),
            given={key: value for key, value in metadata.items() if value},
            audit=find_audits(folder),
        )

    def push_to_hub(self, *positional, **keywords):
        again = f"the model is in {self.args.output_dir}: gradkit push {self.args.output_dir} OWNER/NAME"
        with explained(str(self.hub_model_id or self.args.hub_model_id or self.args.output_dir), again):
            return super().push_to_hub(*positional, **keywords)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.is_world_process_zero() and self.args.hub_strategy != "end":
            self.create_model_card()
        super()._push_from_checkpoint(checkpoint_folder)
        pushed = getattr(self, "push_in_progress", None)
        for job in pushed.jobs if pushed is not None else []:
            if not hasattr(job, "watched"):  # those before it may still be under way
                job.watched = True
                job.add_done_callback(self._tell_failure)

    def _tell_failure(self, job: Future) -> None:
        """Say that a push in the background failed; transformers waits for it, and drops what it raised."""
        error = None if job.cancelled() else job.exception()
        if error is not None:
            logger.warning(
                f"A push to {self.hub_model_id!r} during training failed, so a state of the model is missing there: "
                f"{type(error).__name__}: {error}. The training goes on, and nothing on this machine was lost."
            )


def _plain(adapter: dict[str, Any]) -> dict[str, Any]:
    """Return an adapter's configuration as its file has it: names for enumerations, lists for sets."""
    return {
        key: sorted(value) if isinstance(value, set) else getattr(value, "value", value)
        for key, value in adapter.items()
    }
