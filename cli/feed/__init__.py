"""`millrace feed` and `millrace feed backfill`."""
