"""Files of rows and records: how each kind is read and written, as sources and sinks of Beam and without it."""
