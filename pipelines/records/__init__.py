"""What `millrace records` does with the records of files and topics: one module per action, and their source."""
