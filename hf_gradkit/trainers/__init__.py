"""Trainers and their configurations: thin glue over transformers' and TRL's, nothing else."""
