"""Low-rank factorization: decompositions, the reparameterizable branch, ranks. Pure functions on arrays."""
