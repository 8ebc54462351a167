"""The whole loop on one machine: what `millrace demo` starts, measures and reports."""
