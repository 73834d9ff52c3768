"""Shared by the transforms: modes of a leaf, meshes, models, decompositions, checks."""
