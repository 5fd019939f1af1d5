"""The linear layers of a block, as a model declares them."""

from lraqvit_jax.plan.records import LinearInfo


def attention(path, m, tokens, heads):
    return (
        LinearInfo(f"{path}/attn/qkv", m, 3 * m, tokens, "attention", heads=heads),
        LinearInfo(f"{path}/attn/proj", m, m, tokens, "attention", heads=heads),
    )


def mlp(path, m, hidden, tokens):
    return (
        LinearInfo(f"{path}/mlp/fc1", m, hidden, tokens, "mlp"),
        LinearInfo(f"{path}/mlp/fc2", hidden, m, tokens, "mlp"),
    )
