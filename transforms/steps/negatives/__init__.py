"""The step that generates negatives, with its pool of items."""
