"""What the feed does with events and rows, without Beam."""
