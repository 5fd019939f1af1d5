"""The plan for people: a line a layer, the totals, and what stays in float32."""

from collections.abc import Iterable

from lraqvit_jax.plan.cost import Cost, layer_cost, total_cost
from lraqvit_jax.plan.records import LayerPlan, LinearInfo, Plan, dense, resolved


def table(plan: Plan, layers: Iterable[LinearInfo], other_params: int) -> str:
    """Formats the plan for people: one line a layer, then the totals against the dense model.

    Args:
        plan: the plan.
        layers: the model's linear layers.
        other_params: parameters outside them (norms, position embedding, class token), stored in float32.
    """
    dense_layers = list(layers)
    layers = resolved(dense_layers, plan)
    width = max(len(info.path) for info in layers)
    lines = [
        f"{'layer':<{width}}  {'form':<9} {'shape':>11} {'rank':>5} {'bits':>4} {'params':>11} {'MFLOPs':>9} {'MB':>8}"
    ]
    for info in layers:
        layer, cost = plan[info.path], layer_cost(info, plan[info.path])
        shape = f"{info.features_in}x{info.features_out}"
        lines.append(
            f"{info.path:<{width}}  {layer.form:<9} {shape:>11} {layer.rank or '-':>5} {_width(layer):>4} "
            f"{cost.params:>11,} {cost.flops / 1e6:>9.2f} {cost.bytes / 1e6:>8.3f}"
        )
    for name, of_model in (("dense", dense(dense_layers)), ("planned", plan)):
        cost = total_cost(of_model, dense_layers) + Cost(other_params, 0, 4 * other_params)
        lines.append(
            f"{name:<8} {cost.params / 1e6:.3f} M parameters, {cost.flops / 1e9:.3f} GFLOPs in linear layers, "
            f"{cost.bytes / 1e6:.3f} MB"
        )
    whole, encoder = ([info for info in of if info.compressible] for of in (dense_layers, layers))
    share = _kernels(plan, encoder) / _kernels(dense(whole), whole)
    lines.append(f"The pairs hold {100 * share:.1f} % of the encoder's linear parameters.")
    return "\n".join([*lines, *left_in_float(plan)])


def left_in_float(plan: Plan) -> list[str]:
    """A sentence on what a quantized model computes in float32; none where no layer is quantized."""
    rest = [path for path, layer in plan.items() if layer.form != "quantized"]
    if len(rest) == len(plan):
        return []
    products = [
        path for path, layer in plan.items() if path.endswith(("/qkv", "/query")) and layer.attention == "float"
    ]
    parts = ["LayerNorm, softmax, GELU, sums"]
    parts += [f"the products of attention in {len(products)} blocks"] if products else []
    parts += [f"the layers {', '.join(rest)}"] if rest else []
    return [f"In float32: {'; '.join(parts)}."]


def _width(layer: LayerPlan) -> str:
    """Bits, of the kernel and of the activations where they differ."""
    if not layer.bits or layer.kernel_bits == layer.bits:
        return str(layer.bits or 32)
    return f"{layer.kernel_bits}/{layer.bits}"


def _kernels(plan: Plan, layers: Iterable[LinearInfo]) -> int:
    return sum(layer_cost(info, plan[info.path]).params - info.features_out * info.bias for info in layers)
