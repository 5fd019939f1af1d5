"""Post-training quantization: a float model and what its products read, to integers and the grids of what they read.

`quantize` goes through a model; what it does on the way are functions of their own, one a file, found by its name:

* `smoothing/`: what divides the inputs of a product and multiplies the rows of its kernel;
* `ranges/`: the grid of the activations;
* `rounding/`: kernels to integers.

`between` is what is put between the factors of a pair, `mixed` chooses the bits of each kernel under a budget,
`attention` computes the products of attention on integers. `qarray` is the arithmetic of the integers themselves, and
`fake_quant` its differentiable twin.
"""
