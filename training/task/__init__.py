"""What a modeller declares: features, heads and a Keras model."""
