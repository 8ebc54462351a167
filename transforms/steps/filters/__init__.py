"""Steps that keep or drop rows, and those that name and split flows."""
