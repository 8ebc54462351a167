"""Pure functions over Arrow batches, and the Beam transforms that wrap them."""
