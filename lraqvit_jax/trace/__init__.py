"""Any JAX function: where its parameters multiply activations, and the function again with other forms there."""
