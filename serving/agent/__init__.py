"""The agent: tells a model server what to load, and says who is alive."""
