"""Frames and compression: the bytes of files and Kafka values to records and back."""
