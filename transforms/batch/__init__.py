"""The canonical batch of rows, its columns and what is done with any of them."""
