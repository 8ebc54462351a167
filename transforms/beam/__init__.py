"""The functions of the other wings as Beam PTransforms; no other wing imports Beam."""
