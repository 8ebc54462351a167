"""Deltas of embedding tables and dense weights, applied to what is served."""
