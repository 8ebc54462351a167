"""The endless training run: its loop, its settings and what it reports."""
