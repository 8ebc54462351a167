"""Steps: what a recipe can do with the rows of a batch."""
