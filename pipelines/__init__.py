"""Beam graphs and their Kafka and file sources."""
