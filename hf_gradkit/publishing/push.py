"""From a folder to the Hub: the page is written beside links to the files, and all of it goes up in one commit."""

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .facts import read_model
from .files import MODEL, SELECTION, Kind, gather, kind_of, published
from .gate import Limits
from .hub import license_of, upload
from .page import FILE, model_page, write_page
from .plots import draw
from .sources import read_json


@dataclass(frozen=True)
class Push:
    """One push.

    Attributes:
        folder: what is published.
        repo: `owner/name` on the Hub, or `name` in the account of the token.
        repo_type: "model" or "dataset"; None to find out from the folder.
        revision: branch that is pushed to, made if it is missing; None is the main one.
        private: whether a new repository is private; None leaves it to the account's settings.
        message: of the commit.
        metadata: license, language and tags that the user gives.
        limits: what a model may give away at most.
        again: the command that tries again, for error messages.
    """

    folder: Path
    repo: str
    repo_type: str | None = None
    revision: str | None = None
    private: bool | None = None
    message: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    again: str = "run it again"

    def run(self) -> str:
        """Push, and return the address of the page on the Hub. The folder itself is only read.

        Raises:
            ValueError: if the folder holds nothing to push, or is above a limit or cannot be judged by it.
            PushError: if the Hub refuses, fails, or cannot be reached.
        """
        kind = self._check()
        with tempfile.TemporaryDirectory() as staging:
            self.write(Path(staging), kind, copy=False)
            return upload(
                Path(staging), self.repo, kind.repo_type, self.private, self.revision, self.message, self.again
            )

    def dry_run(self, target: Path) -> list[str]:
        """Write what would be pushed into a folder, and return its files, as paths in it.

        Raises:
            ValueError: as [`run`], or if the folder has files in it already.
        """
        if target.exists() and any(target.iterdir()):
            raise ValueError(f"--dry_run writes into {str(target)!r}, which is not empty. Name a new folder.")
        kind = self._check()
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as staging:
            whole = Path(staging) / "whole"
            whole.mkdir()
            self.write(whole, kind, copy=True)
            if target.exists():
                target.rmdir()
            shutil.move(whole, target)
        return sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())

    def _check(self) -> Kind:
        kind = kind_of(self.folder, self.repo_type)
        if self.limits.active and kind is not MODEL:
            raise ValueError(f"Limits are for models, and {str(self.folder)!r} holds a data set. Leave them out.")
        for sentence in self.limits.check(self.folder):
            print(sentence)
        return kind

    def write(self, target: Path, kind: Kind, copy: bool) -> None:
        """Write the page and its pictures into a folder, and put the files beside them, as copies or as links."""
        if kind is MODEL:
            facts = read_model(self.folder, self.repo, self.revision, **self.metadata)
            if "license" not in facts.given:
                facts.given.update(license_of(facts.base.hub))
            try:
                drawn = draw(facts.run, target)
            except ImportError as error:
                print(f"The page has no pictures: {error}")
                drawn = []
            write_page(model_page(facts, drawn), target)
        elif kind is SELECTION:
            self._write_selection(target)
        else:
            from .dataset_page import scores_page

            figures = read_json(self.folder / "scores.json")
            write_page(scores_page(self.folder, figures, self.repo, **self.metadata), target)
        written = (FILE, "selected.") if kind is SELECTION else (FILE,)
        names = [name for name in published(self.folder, kind) if not name.startswith(written)]
        gather(self.folder, names, target, copy)

    def _write_selection(self, target: Path) -> None:
        """Write page and rows of a selection, the rows as parquet: all data of a repository is of one kind."""
        import pyarrow.parquet as pq

        from ..data.loading import load_split
        from .dataset_page import selection_page

        data = next(path for path in sorted(self.folder.glob("selected.*")) if path.suffix != ".tmp")
        file = target / "selected.parquet"
        if data.suffix == ".parquet":
            shutil.copyfile(data, file)
        else:
            load_split(str(data), "train").to_parquet(str(file))
        figures = read_json(self.folder / "selection.json")
        rows = pq.read_metadata(file).num_rows
        if rows != figures["kept"]:
            raise ValueError(
                f"{str(data)!r} has {rows} rows, and selection.json beside it speaks of {figures['kept']}: they are "
                "of different selections, or the rows were changed since. Run gradkit select again."
            )
        write_page(selection_page(self.folder, figures, file.name, self.repo, **self.metadata), target)
