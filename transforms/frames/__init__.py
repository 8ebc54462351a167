"""Frames and compression: bytes of files and streams to records and back."""
