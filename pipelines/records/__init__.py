"""What `millrace records` does with records of files and topics."""
