"""The log format, figures and pages."""

from .example_log import read_example_log

__all__ = ["read_example_log"]
