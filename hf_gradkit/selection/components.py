"""Components of a selection: callables from a list of rows to one value, or one vector, a row.

A component of the user's own is a function. Those that come with the package are small frozen dataclasses that are
told the whole data set, so that what has a model goes through each prompt once.
"""

import dataclasses
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate.logging import get_logger
from datasets import Dataset

from .._methods import Kind, build, import_by_path
from .._text import listing
from ..scoring import fingerprints
from ..scoring.engine import NonFiniteScoreError
from ..scoring.processes import on_main
from ..scoring.records import describe_model
from .functions import hash_function
from .work import Work

logger = get_logger(__name__)

ROWS_AT_ONCE = 256  # that a function of the user's own is called with


class Component(ABC):
    """A component that looks at the data set as a whole, and can be called with rows as well.

    Attributes:
        model_options: those of its options that name a model.
    """

    model_options: ClassVar[tuple[str, ...]] = ()

    def models(self) -> dict[str, str]:
        """Return name and short hash of the content of each model that it scores by; on all processes."""
        return named_models(self)

    def check(self, dataset: Dataset) -> None:  # noqa: B027 - most have nothing to say
        """Raise an error for what is missing: columns, models, libraries. Called for all before anything is scored."""

    @abstractmethod
    def of_dataset(self, dataset: Dataset, work: Work) -> np.ndarray:
        """Return one value a row, (n,), or one vector a row, (n, d)."""

    def __call__(self, rows: list[dict[str, Any]]) -> np.ndarray:
        """Return the values of some rows, scored in this process and kept nowhere."""
        with tempfile.TemporaryDirectory() as folder:
            return self.of_dataset(Dataset.from_list(rows), Work(Path(folder)))


def build_component(role: str, value: Any, known: dict[str, type]) -> Any:
    """Return a component from what a configuration says.

    Args:
        role: such as "margin", for messages.
        value: a callable, as it is; a name of `known`; `"package.module:function"`; or a mapping with `by`, which is
            one of these names, and the component's options.
        known: the components that come with the package.

    Raises:
        ValueError: for an unknown component or option, or one that cannot be called.
    """
    if value is None or callable(value):
        return value
    kind = Kind(
        name=f"{role} component",
        option=role,
        example=repr(next(iter(known))),
        kwargs=role,
        contract="a function from a list of rows to an array, or a class of such",
        attributes=("__call__",),
    )
    if isinstance(value, str):
        value = {"by": value}
    if not isinstance(value, dict) or not isinstance(value.get("by"), str):
        raise ValueError(
            f"`{role}` must be a function, a name, or a mapping with `by` and options, such as "
            f"{{'by': {next(iter(known))!r}}}, but it is {value!r}. Known names: {listing(known)}; a function of your "
            "own is named by its import path, 'package.module:function'."
        )
    name, options = value["by"], {key: option for key, option in value.items() if key != "by"}
    if name in known or ":" not in name:
        return build(kind, name, known, options)
    return _imported(role, name, options)


def _imported(role: str, path: str, options: dict[str, Any]) -> Callable:
    found = import_by_path(f"{role} component", path, "package.module:function")
    if not callable(found):
        raise ValueError(f"`{role}` is {path!r}, which is a {type(found).__name__} and no function.")
    if isinstance(found, type):
        found = found(**options)
    elif options:
        raise ValueError(
            f"`{role}` has the options {listing(options)}, but {path!r} is a function, which takes rows alone. Write "
            "a class that is called with rows, or leave the options out."
        )
    return found


def evaluate(component: Any, role: str, dataset: Dataset, work: Work, vectors: bool = False) -> np.ndarray:
    """Return a component's values. (n,) float64, or with `vectors` (n, d) float32

    Args:
        component: a [`Component`], or a function of rows, which is called with some at a time, on all processes: what
            it says of a row must not depend on the others.
        role: such as "margin", for messages.
        dataset: the rows.
        work: keeps the values.
        vectors: whether one vector a row is wanted.

    Raises:
        ValueError: for another number of values than rows, or another shape.
        NonFiniteScoreError: for values that are not finite, naming rows.
    """
    with work.timed(role):
        if isinstance(component, Component):
            values = component.of_dataset(dataset, work)
        else:
            values = _call(component, role, dataset, work)
    values = _as_array(values)
    if values.ndim != 1 + vectors or len(values) != len(dataset):
        raise ValueError(_wrong_shape(role, component, values.shape, len(dataset), vectors))
    bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(1))
    if len(bad):
        raise NonFiniteScoreError(_not_finite(role, work.in_data(bad)))
    return values.astype(np.float32 if vectors else np.float64)


def check_all(parts: Iterable[Any], dataset: Dataset) -> None:
    """Raise an error for what any of some components misses, before one of them scores."""
    for part in parts:
        if isinstance(part, Component):
            part.check(dataset)


def describe(component: Any) -> Any:
    """Return what a report says of a component: name and options, the function's name, or how large the data is."""
    if component is None:
        return None
    if isinstance(component, Dataset):
        return f"a data set of {len(component)} rows"
    if dataclasses.is_dataclass(component):
        return {"by": type(component).__name__, **dataclasses.asdict(component)}
    return getattr(component, "__qualname__", None) or type(component).__qualname__


def named_models(owner: Any) -> dict[str, str]:
    """Return, for each option in `model_options`, name and short hash of the model, or models, that it names."""
    found = {}
    for option in owner.model_options:
        value = getattr(owner, option)
        models = value if isinstance(value, (list, tuple)) else [value]
        if value is not None:
            found[option] = ", ".join(describe_model(model) for model in models)
    return found


def _call(function: Callable, role: str, dataset: Dataset, work: Work) -> np.ndarray:
    scorer = _FunctionScorer(function, role, dataset.with_format(None), work)

    def identity() -> tuple:
        return _hash(function, role), fingerprints.hash_rows(dataset, dataset.column_names)

    def make() -> AbstractContextManager:
        return nullcontext((range(len(dataset)), scorer))

    return work.score(role, on_main(identity), (role,), len(dataset), make, ROWS_AT_ONCE)[role]


def _hash(function: Callable, role: str) -> str:
    try:
        return hash_function(function)
    except Exception as error:  # whatever pickling runs into, in objects of the user's own
        logger.warning(
            f"`{role}` is {describe(function)}, which cannot be told from other functions ({error}), so its values "
            "are not kept for a later run."
        )
        return fingerprints.digest(id(function), str(np.random.default_rng().integers(2**62)))


class _FunctionScorer:
    """Lets the engine call a function of rows; items are row numbers."""

    def __init__(self, function: Callable, role: str, dataset: Dataset, work: Work):
        self.function, self.role, self.dataset, self.work = function, role, dataset, work
        self.columns = (role,)

    def length(self, item: int) -> int:
        return 1

    def score(self, items: list[int]) -> dict[str, np.ndarray]:
        returned = self.function(self.dataset.select(items).to_list())
        try:
            values = _as_array(returned)
            values = values.astype(np.float32 if values.ndim == 2 else np.float64)
        except (TypeError, ValueError) as error:  # text, None, or vectors of different lengths
            rows = self.work.in_data(items)
            raise ValueError(
                f"`{self.role}` ({describe(self.function)}) returned something else than one number, or one vector of "
                f"numbers, for each of the rows {rows[:3].tolist()} ... {rows[-1]} of the data: {error}."
            ) from error
        if values.ndim not in (1, 2) or len(values) != len(items):
            raise ValueError(_wrong_shape(self.role, self.function, values.shape, len(items), values.ndim == 2))
        bad = ~np.isfinite(values.reshape(len(values), -1)).all(1)
        if bad.any():
            raise NonFiniteScoreError(_not_finite(self.role, self.work.in_data(items)[bad]))
        return {self.role: values}


def _as_array(values: Any) -> np.ndarray:
    """Return values as an array; tensors of any type and device, or a list of them, too."""
    if isinstance(values, (list, tuple)) and any(isinstance(value, torch.Tensor) for value in values):
        values = [_as_array(value) for value in values]
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().double().numpy()  # numpy has no bfloat16
    return np.asarray(values)


def _not_finite(role: str, rows: np.ndarray) -> str:
    return (
        f"`{role}` of rows {np.sort(rows)[:10].tolist()} of the data is not a finite number. Look at these rows, or "
        "leave them out."
    )


def _wrong_shape(role: str, component: Any, shape: tuple, rows: int, vectors: bool) -> str:
    wanted = f"({rows}, d), one vector" if vectors else f"({rows},), one number"
    return (
        f"`{role}` ({describe(component)}) returned values of shape {tuple(shape)} for {rows} rows, where {wanted} a "
        "row is needed."
    )
