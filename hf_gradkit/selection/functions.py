"""Functions of the user's own: when a changed one is another one."""

import hashlib
import inspect
import pickletools
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from .. import _compat
from ..scoring import fingerprints


def hash_function(function: Callable) -> str:
    """Hash a function, or an object that can be called, with the code that it uses.

    Pickling writes what was imported by name alone, so the files that are named there are part of the hash: of the
    function, and of what a `functools.partial`, a method, a closure or an object holds. Not of what these files import
    in turn.

    Raises:
        Exception: of any kind, for what cannot be pickled.
    """
    pickled = _compat.pickle_function(function)
    sources = {module.__name__: _source(module) for module in _modules(function, pickled)}
    return fingerprints.digest(hashlib.blake2b(pickled).hexdigest(), sources)


def _modules(function: Callable, pickled: bytes) -> Iterator[ModuleType]:
    """Yield the module of the function, and those of the user's own that a pickle names."""
    own = inspect.getmodule(function if inspect.isroutine(function) else type(function))
    if own is not None and own.__name__ != "__main__":  # there it is pickled with all that it uses
        yield own
    installed = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")]
    for name in {text for _, text, _ in pickletools.genops(pickled) if isinstance(text, str)}:
        module = sys.modules.get(name)
        file = getattr(module, "__file__", None)
        if file is None or name == "__main__":
            continue
        if not any(Path(file).resolve().is_relative_to(folder) for folder in installed):
            yield module


def _source(module: ModuleType) -> str:
    try:
        return inspect.getsource(module)
    except (OSError, TypeError):  # compiled
        return ""
