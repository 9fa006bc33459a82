"""What can be wrong with a record of gradients."""


class GradientRecordError(RuntimeError):
    """The gradients that were asked for were not recorded, or cannot be told apart by row."""
