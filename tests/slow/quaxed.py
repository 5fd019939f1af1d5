"""The other way to put forms into a function, an array type that is dispatched on (quax), on the models of `foreign`.

    python -m tests.slow.quaxed [NAME ...]

Each leaf that is the kernel of a site becomes a pair of factors which is an array to JAX; a rule multiplies by both
where it meets a product, and quax makes it whole for every other primitive. A line for each model: how many of its
kernels reached their products as pairs, how many were made whole before, or why it did not run. Needs `quax`.
"""

import collections
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import lraqvit_jax
from lraqvit_jax.base import console
from tests.slow.foreign import CASES, Case


def share(case: Case) -> str:
    """What became of the kernels."""
    import equinox as eqx
    import quax

    seen: dict[str, set[str]] = collections.defaultdict(set)

    class Pair(quax.ArrayValue):
        """u (a, r) and v (r, rest) in place of a leaf."""

        u: jax.Array
        v: jax.Array
        name: str = eqx.field(static=True)
        shape_of: tuple[int, ...] = eqx.field(static=True)

        def aval(self) -> Any:
            return jax.core.ShapedArray(self.shape_of, self.u.dtype)

        def materialise(self) -> jax.Array:
            seen["whole"].add(self.name)
            return (self.u @ self.v).reshape(self.shape_of)

    @quax.register(lax.dot_general_p)
    def _(x: jax.Array, pair: Pair, *, dimension_numbers: Any, **options: Any) -> jax.Array:
        contracted, batched = dimension_numbers
        if contracted[1] != (0,) or batched[1]:
            return lax.dot_general(x, pair.materialise(), dimension_numbers, **options)
        seen["pairs"].add(pair.name)
        inner = lax.dot_general(x, pair.u, dimension_numbers)
        return (inner @ pair.v).reshape(*inner.shape[:-1], *pair.shape_of[1:])

    apply, params, batches = case
    kernels = {site.leaf for site in lraqvit_jax.find(apply, params, batches[0]) if site.compressible}

    def paired(keys: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(keys, simple=True, separator="/")
        if name not in kernels:
            return leaf
        flat = np.asarray(leaf).reshape(leaf.shape[0], -1)
        rank = min(flat.shape)
        left, values, right = np.linalg.svd(flat, full_matrices=False)
        return Pair(jnp.asarray(left * values)[:, :rank], jnp.asarray(right[:rank]), name, tuple(leaf.shape))

    inputs = jax.tree.map(jnp.asarray, batches[0])
    jax.eval_shape(quax.quaxify(apply), jax.tree_util.tree_map_with_path(paired, params), inputs)
    whole = seen["whole"]
    return f"{len(seen['pairs'] - whole)} | {len(whole)} | {len(kernels)}"


def main(names: list[str]) -> None:
    console.set_level(console.QUIET)
    print("| model | as pairs | made whole | kernels |\n|---|---|---|---|", flush=True)
    for name, make in CASES.items():
        if names and not any(wanted.lower() in name.lower() for wanted in names):
            continue
        try:
            said = share(make())
        except Exception as error:  # of one model; the others go on
            said = f"{type(error).__name__}: {str(error).splitlines()[0][:120]} | |"
        print(f"| {name} | {said} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
