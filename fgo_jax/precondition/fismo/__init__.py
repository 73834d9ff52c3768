"""FISMO: an orthogonalised momentum between two whitening factors."""
