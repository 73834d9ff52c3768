"""What the families of preconditioners share: modes of a leaf, meshes, checks."""
