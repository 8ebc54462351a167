"""Tasks, the training loop, checkpoints, exports and publishing."""
