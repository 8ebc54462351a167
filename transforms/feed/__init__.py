"""The feed without Beam: events, their join, the shards of its state, and rows to train batches."""
