"""Files of records as sources and sinks."""
