"""The feed: its Beam graph, its state and the runners it is submitted to."""
