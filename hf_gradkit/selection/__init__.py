"""Data selection: which rows of a data set to keep."""
