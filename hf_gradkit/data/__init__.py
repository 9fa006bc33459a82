"""Formats and columns, packing, loading, and the synthetic generators."""
