"""Checkpoints: when one is written, what is in it, which are kept."""
