"""Train blocks from Kafka to tensors, and the position that was read."""
