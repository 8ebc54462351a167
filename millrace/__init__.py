"""Trains recommender models on live events and serves what they learned a second later."""
