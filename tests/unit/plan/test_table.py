"""The plan for people."""

from lraqvit_jax.plan.records import LayerPlan, LinearInfo, dense
from lraqvit_jax.plan.table import left_in_float, table


def test_what_a_quantized_model_computes_in_float_is_said():
    info = LinearInfo("blocks_0/attn/qkv", 64, 192, 17, "attention")
    head = LinearInfo("head", 64, 10, 1, "head")
    whole = {info.path: LayerPlan("quantized", 0, 8), head.path: LayerPlan("quantized", 0, 8)}
    assert left_in_float(dense([info, head])) == []
    assert "the products of attention in 1 blocks" in table(whole, [info, head], 0)
    integers = {info.path: LayerPlan("quantized", 0, 8, attention="uniform"), head.path: LayerPlan()}
    said = table(integers, [info, head], 0)
    assert "products of attention" not in said
    assert said.endswith("the layers head.")
