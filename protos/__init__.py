"""Wire contracts: one message family a file; Python code is generated at build."""
