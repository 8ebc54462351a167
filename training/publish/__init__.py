"""What leaves the trainer: exports, events and deltas."""
