"""Steps that make, change and remove features."""
