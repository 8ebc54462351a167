"""Recipes: steps in YAML or JSON, and the chain that runs them."""
