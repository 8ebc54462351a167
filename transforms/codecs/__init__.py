"""Codecs: the records of each format to batches of rows and back."""
