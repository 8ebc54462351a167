"""Clients of a model server, for commands and tests."""
