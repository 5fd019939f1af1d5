"""Query, key and value of an attention block: one fused layer "qkv", or three where the plan is by head."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from lraqvit_jax.models.linear import Linear, LinearOptions
from lraqvit_jax.plan.records import HEAD_PARTS, LayerPlan


def projections(
    x: Float[Array, "batch tokens dim"], heads: int, options: LinearOptions, path: tuple[str, ...]
) -> tuple[list[Float[Array, "batch tokens heads _"]], LayerPlan]:
    """To be called by the attention module at `path`, whose layers these are.

    Returns:
        query, key and value by head, the query not divided by anything yet, and the entry of the plan that says how the
        products of attention are computed. By head, query and key have their own number of channels, and value its own.
    """
    batch, tokens, dim = x.shape
    planned = dict(options.plan)
    layer = planned.get("/".join((*path, "query")))
    if layer is None:
        qkv = Linear(3 * dim, options, ("embed", "heads"), name="qkv")(x)
        parts = jnp.moveaxis(qkv.reshape(batch, tokens, 3, heads, dim // heads), 2, 0)
        return list(parts), options.of("/".join((*path, "qkv")))
    outputs = []
    for name in HEAD_PARTS:
        width = options.of("/".join((*path, name))).width or dim // heads
        made = Linear(
            heads * width, options, ("embed", "heads"), heads=heads, use_bias=name == HEAD_PARTS[0], name=name
        )
        outputs.append(made(x).reshape(batch, tokens, heads, width))
    return outputs, layer
