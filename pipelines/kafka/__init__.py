"""Kafka topics as Beam sources and sinks."""
