"""Steps that make and change labels, weights and sample rates."""
