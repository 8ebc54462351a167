"""One training step and what is measured about it."""
