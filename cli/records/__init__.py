"""`millrace records`."""
