"""What every file of a folder must keep, found by walking the folder: a new file is tested at once."""

import importlib
import pathlib
import pkgutil

import numpy as np
import pytest

from lraqvit_jax import config, lowrank
from lraqvit_jax.calibration import moments
from lraqvit_jax.options import quant
from lraqvit_jax.options.quant import Quantizer
from lraqvit_jax.plan import records as plan
from lraqvit_jax.quant import smoothing
from lraqvit_jax.quant.quantize import Product

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
FUNCTIONS = ("any",)
"""Those of functions that are not our models."""


def modules(package, attribute):
    names = [one.name for one in pkgutil.iter_modules(package.__path__)]
    return [name for name in names if hasattr(importlib.import_module(f"{package.__name__}.{name}"), attribute)]


@pytest.mark.parametrize("name", modules(lowrank, "decompose"))
def test_a_decomposition_gives_finite_pairs_and_is_exact_at_full_rank(rng, name):
    module = lowrank.decomposition(name)
    assert module.STATISTICS in ("none", "inputs", "gradients", "sequential")
    assert isinstance(module.CORRECTS_BIAS, bool)
    kernel, x = rng.standard_normal((12, 9)), rng.standard_normal((40, 12))
    for rank in (1, 4, 9):
        pair = module.decompose(kernel, rank, moments=moments.of(x, rng.standard_normal((30, 9))))
        assert (pair.u.shape, pair.v.shape) == ((12, rank), (rank, 9))
        assert np.all(np.isfinite(pair.u)) and np.all(np.isfinite(pair.v))
    np.testing.assert_allclose(pair.u @ pair.v, kernel, atol=1e-6)


@pytest.mark.parametrize("name", modules(smoothing, "smooth"))
def test_a_quantizer_gives_positive_vectors_for_products_it_knows(rng, name):
    module = importlib.import_module(f"{smoothing.__name__}.{name}")
    products = {
        f"layer_{index}:x": Product(
            rng.standard_normal((3, 4, 6)).astype(np.float32),
            rng.standard_normal((6, 5)).astype(np.float32),
            plan.LayerPlan("quantized", 0, 8, granularity=granularity),
            after_norm=index == 0,
        )
        for index, granularity in enumerate(quant.GRANULARITIES)
    }
    alphas = module.smooth(products, Quantizer(iterations=2))
    assert set(alphas) <= set(products)
    for alpha in alphas.values():
        assert alpha.shape == (6,)
        assert np.all(np.isfinite(alpha)) and np.all(alpha > 0)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_imports_fits_and_says_its_command(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    fields = module.get_config().to_dict()
    if path.stem in FUNCTIONS:
        assert config.parse_function({**fields, "model": "import:package.module:function"})
    else:
        config.parse(fields)
    assert f"--config configs/{path.name} --workdir" in module.__doc__


def test_the_default_config_is_whole():
    fields = config.default()
    fields.data.update(train="embedded:digits", eval="embedded:digits")
    config.parse(fields.to_dict())
