"""The same functions as Beam PTransforms; no other wing imports Beam."""
