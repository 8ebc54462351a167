"""The canonical batch of rows: its columns, and functions that need nothing but them."""
