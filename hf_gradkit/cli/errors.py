"""How a command ends when something is wrong with its arguments, its files or its data."""

import os
import sys

# What a user can put right. Anything else is a fault of the program and keeps its traceback.
USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError, EOFError)

EXIT_CODE = 2
INTERRUPTED = 130  # by Ctrl-C, as shells count


def report(error: BaseException, every_rank: bool = False) -> int:
    """Print an error as one message on stderr, and return the exit code.

    Where several processes run, those that fail before training fail alike, so the first one of each machine speaks
    for all; one that fails while it trains may be the only one that knows why.

    Args:
        error: what was raised.
        every_rank: print on each process, with its rank.

    Raises:
        BaseException: the error itself, if GRADKIT_TRACEBACK=1 is set.
    """
    if os.environ.get("GRADKIT_TRACEBACK") == "1":
        raise error
    rank = f"[rank {os.environ['RANK']}] " if every_rank and "RANK" in os.environ else ""
    if every_rank or os.environ.get("LOCAL_RANK", "0") == "0":
        message = str(error) or type(error).__name__
        print(f"gradkit: {rank}{message}\n(GRADKIT_TRACEBACK=1 shows where.)", file=sys.stderr, flush=True)
    return EXIT_CODE
