"""`millrace checkpoint`."""
