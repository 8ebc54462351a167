"""The model server and the agent beside it."""
