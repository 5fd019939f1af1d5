"""Plans of every kind that a model can follow, for property tests."""

from hypothesis import strategies as st

from lraqvit_jax.options.quant import BITS, GRANULARITIES
from lraqvit_jax.plan.records import LayerPlan, LinearInfo

clips = st.floats(0.01, 1)
infos = st.builds(
    LinearInfo,
    path=st.sampled_from(["blocks_0/mlp/fc1", "blocks_0/attn/qkv"]),
    features_in=st.integers(2, 800),
    features_out=st.integers(2, 800),
    tokens=st.integers(1, 200),
    kind=st.just("mlp"),
    bias=st.booleans(),
)


def ranks(info):
    """Those at which a pair has fewer parameters than the kernel; an empty range for the smallest layers."""
    m, n = info.features_in, info.features_out
    return range(1, -(-m * n // (m + n)))


@st.composite
def entries(draw, info, forms=("dense", "low_rank", "reparam", "quantized")):
    """Any entry for a layer that makes sense."""
    paying = ranks(info)
    form = draw(st.sampled_from([form for form in forms if paying or form in ("dense", "quantized")]))
    rank = draw(st.sampled_from(paying)) if paying and form != "dense" else 0
    if form != "quantized":
        return LayerPlan(form, rank)
    fields = {
        "granularity": draw(st.sampled_from(GRANULARITIES)),
        "clip": draw(clips),
        "clip_z": draw(st.just(0.0) | clips),
        "smoothed": draw(st.booleans()),
        "group": draw(st.sampled_from([0, 1, 5, 8, 1000])),
        "asymmetric": draw(st.booleans()),
    }
    rank = draw(st.sampled_from([0, rank]))
    fields |= {"bits": draw(st.sampled_from(BITS)), "weight_bits": draw(st.sampled_from([0, *BITS]))}
    if info.path.endswith("/qkv"):
        fields["attention"] = draw(st.sampled_from(["float", "uniform", "log_sqrt2"]))
    return LayerPlan(form, rank, **fields)


@st.composite
def layers_with_entries(draw, **options):
    """A layer of any shape, and an entry for it."""
    info = draw(infos)
    return info, draw(entries(info, **options))


@st.composite
def plans(draw, layers, **options):
    """An entry for each layer, each drawn by itself."""
    return {info.path: draw(entries(info, **options)) for info in layers}
