"""Clients, deadlines, metrics and development servers: a leaf that every other package may import."""
