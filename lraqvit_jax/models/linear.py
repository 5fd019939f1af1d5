"""The one linear layer: declares the parameters of its form (dense, low_rank, reparam for training, quantized), and
leaves to `forms` what is computed with them.

Which form a layer has is data: `Linear` looks its own path up in the plan. A model never asks. Parameters by form,
for a kernel of shape (m, n) = (in, out) and rank r:

    dense      kernel (m, n)
    low_rank   u (m, r), v (r, n)                      y = (x @ u) @ v + b                         Eq. 2-3
    pivoted    a pair u, v with an identity block, which copies channels: see `forms.pivoted`
    reparam    u, v, and the branch du (m, r), dv (r, n)   y = (x @ (u + du)) @ (v + dv) + b       Eq. 4-6
    quantized  kernel, or u and v, as {qvalue, scale} (`quant.qarray`), with the input scales `x_scale`
               (and `z_scale` between u and v) where they are static, the centres `x_center` and
               `z_center` where they are asymmetric too, and `smooth` (m,) where the input is divided
               by a vector first, `z_smooth` (r,) where what is between u and v is; for training
               (`training.qat`) kernels as {latent, scale}, float, and where scales are dynamic
               the shares of the range `x_clip` and `z_clip` ()                                   Eq. 11

and bias (n,) in every form, where the layer has one.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from lraqvit_jax.forms import pivoted
from lraqvit_jax.forms.dense import dense
from lraqvit_jax.forms.pair import low_rank, reparam
from lraqvit_jax.forms.quantized import quantized
from lraqvit_jax.plan.cost import factor_shapes, packed_rows
from lraqvit_jax.plan.records import DENSE, PACKED, LayerPlan

FLOAT = {"dense": dense, "low_rank": low_rank, "reparam": reparam}
"""What a float form computes."""


@dataclasses.dataclass(frozen=True)
class LinearOptions:
    """What every linear layer of a model shares.

    Attributes:
        plan: pairs of layer path and `LayerPlan`, sorted (a tuple, so that models can be hashed and compared).
        dtype: of the float products; parameters stay float32.
        arithmetic: "integer" multiplies int8 by int8 into int32; "fake" is its differentiable float twin; "train"
            holds float kernels and rounds them at every step; "unrounded" divides activations by their static scales
            and leaves the rounding to the runtime of an exported file (`export.litert`).
        remat: "block" computes each encoder block again, from its input, in the backward pass; "none" keeps all.
    """

    plan: tuple[tuple[str, LayerPlan], ...] = ()
    dtype: str = "float32"
    arithmetic: str = "integer"
    remat: str = "none"

    def of(self, path: str) -> LayerPlan:
        return dict(self.plan).get(path, DENSE)


class Linear(nn.Module):
    """`y = x @ W + b` over the last axis, in the form its plan entry says.

    Attributes:
        features: n.
        options: plan, dtype and arithmetic.
        axes: logical names of the kernel's input and output axes, for sharding.
        heads: that share the outputs, where the kernel of each can have an identity block.
        use_bias: whether b is there.
    """

    features: int
    options: LinearOptions
    axes: tuple[str, str] = ("embed", "mlp")
    use_bias: bool = True
    heads: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "... m"]) -> Float[Array, "... n"]:
        layer = self.options.of("/".join(self.path))
        self._observe("x", x)
        if layer.form == "quantized":
            y = self._quantized(x, layer)
        else:
            y = self._float(x, layer)
        if not self.use_bias:
            return y
        bias = self._param("bias", nn.initializers.zeros, (self.features,), self.axes[1:])
        return y + bias.astype(y.dtype)

    def _float(self, x: Array, layer: LayerPlan) -> Array:
        shapes = self._factor_shapes(x.shape[-1], layer)
        init = {"kernel": nn.initializers.xavier_uniform(), "u": nn.initializers.lecun_normal()}
        init["v"] = init["u"]
        if layer.form == "reparam":
            shapes |= {f"d{name}": shape for name, shape in shapes.items()}
        params = {
            name: self._param(name, init.get(name, nn.initializers.zeros), shape, axes)
            for name, (shape, axes) in shapes.items()
        }
        # Two-dimensional products are 23-33 % faster than batched ones in XLA's CPU backend.
        rows = x.astype(self.options.dtype).reshape(-1, x.shape[-1])
        if layer.basis in ("input", "output"):
            params["basis"] = self._basis(layer)
        if layer.rank and self.is_mutable_collection("calibration"):
            merged = {**params, "u": params["u"] + params["du"]} if layer.form == "reparam" else params
            self._observe("z", pivoted.between(merged, rows, layer.basis).reshape(*x.shape[:-1], -1))
        product = pivoted.pivoted(layer.basis, layer.rank) if layer.basis else FLOAT[layer.form]
        return product(params, rows).reshape(*x.shape[:-1], self.features)

    def _basis(self, layer: LayerPlan) -> Array:
        """The channels that are copied: (rank,), or (heads, width)."""
        shape = (layer.rank,) if layer.rank else (self.heads, self.features // self.heads)
        init = nn.with_logical_partitioning(_first_channels, (None,) * len(shape))
        basis: Any = self.param("basis", init, shape, jnp.int16)
        return basis

    def _quantized(self, x: Array, layer: LayerPlan) -> Array:
        x = x.astype(jnp.float32)
        images = x if x.ndim > 2 else x[:, None]
        params: dict[str, Any] = {}
        if layer.smoothed:
            params["smooth"] = self._param("smooth", nn.initializers.ones, (x.shape[-1],), self.axes[:1])
        if layer.smoothed_z:
            params["z_smooth"] = self._param("z_smooth", nn.initializers.ones, (layer.rank,), (None,))
        if layer.basis in ("input", "output"):
            params["basis"] = self._basis(layer)
        shapes, arithmetic = self._factor_shapes(x.shape[-1], layer), self.options.arithmetic
        init = _latent_init if arithmetic == "train" else _qarray_init
        for name, (shape, axes) in shapes.items():
            params[name] = self.param(name, init(shape, axes, layer))
            params |= self._grid("z" if name == "v" else "x", images.shape[-2], layer)
        rows = {name: shape[0] for name, (shape, _) in shapes.items()}
        y = quantized(params, images, layer, rows, arithmetic)
        return y.reshape(*x.shape[:-1], self.features).astype(self.options.dtype)

    def _grid(self, part: str, tokens: int, layer: LayerPlan) -> dict[str, Array]:
        """What is stored of the grid of "x", what the layer reads, or of "z", what is between its factors."""
        if layer.granularity == "per_token_dynamic":
            trains = self.options.arithmetic == "train"
            return {f"{part}_clip": self._param(f"{part}_clip", nn.initializers.ones, (), ())} if trains else {}
        positions = (tokens, 1) if layer.granularity == "per_token" else ()
        names = (None,) * len(positions)
        stored = {f"{part}_scale": self._param(f"{part}_scale", nn.initializers.ones, positions, names)}
        if layer.asymmetric:
            stored[f"{part}_center"] = self._param(f"{part}_center", nn.initializers.zeros, positions, names)
        return stored

    def _factor_shapes(self, features_in: int, layer: LayerPlan) -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
        shapes = factor_shapes(features_in, self.features, layer, self.heads)
        if not layer.rank:
            return {"kernel": (shapes["kernel"], self.axes)}
        first, second = ("rank" if axis == "embed" else "inner_rank" for axis in self.axes)
        return {"u": (shapes["u"], (self.axes[0], first)), "v": (shapes["v"], (second, self.axes[1]))}

    def _param(self, name: str, init: Callable[..., Array], shape: tuple[int, ...], axes: tuple) -> Any:
        return self.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)

    def _observe(self, name: str, value: Array) -> None:
        """Shows an activation to whoever collects calibration statistics; nothing otherwise."""
        if self.is_mutable_collection("calibration"):
            self.sow("calibration", name, value, reduce_fn=lambda _, new: new, init_fn=lambda: None)


def _first_channels(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """A basis of the first channels: what a pivoted layer is initialized with."""
    del key
    return jnp.broadcast_to(jnp.arange(shape[-1], dtype=dtype), shape)


Init = Callable[[jax.Array], dict]


def _qarray_init(shape: tuple[int, ...], axes: tuple[str, ...], layer: LayerPlan) -> Init:
    """Declares a kernel of integers; a quantized layer is never initialized at random."""
    (m, n), bits = shape, layer.kernel_bits
    stored = (axes, (m, n), jnp.int8) if bits not in PACKED else ((None, axes[1]), (packed_rows(m, bits), n), jnp.uint8)
    return _declare("qvalue", stored, _scales(shape, axes, layer))


def _latent_init(shape: tuple[int, ...], axes: tuple[str, ...], layer: LayerPlan) -> Init:
    """Declares the float kernel that is rounded in training."""
    return _declare("latent", (axes, shape, jnp.float32), _scales(shape, axes, layer))


def _scales(shape: tuple[int, ...], axes: tuple[str, ...], layer: LayerPlan) -> tuple[Any, Any, Any]:
    (m, n), group = shape, layer.group
    return ((None, axes[1]), (-(-m // group), n), jnp.float32) if group else (axes[1:], (n,), jnp.float32)


def _declare(name: str, kernel: tuple[Any, Any, Any], scale: tuple[Any, Any, Any]) -> Init:
    def init(key: jax.Array) -> dict:
        del key
        boxed, fill = nn.with_logical_partitioning, (nn.initializers.zeros, nn.initializers.ones)
        return {
            one: boxed(value, axes)(None, shape, dtype)
            for one, value, (axes, shape, dtype) in zip((name, "scale"), fill, (kernel, scale), strict=True)
        }

    return init
