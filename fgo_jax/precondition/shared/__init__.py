"""What the transforms of this package share: modes of a leaf, meshes, models, checks."""
