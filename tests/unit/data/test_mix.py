"""Mixup and CutMix: what they do to a batch, and the pipeline with them."""

import collections

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from lraqvit_jax import config
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.data import augment, mix, pipeline
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.options.training import Mix

SIZE = 20


def batch(rng, rows=6, size=SIZE):
    image = rng.standard_normal((rows, size, size, 3)).astype(np.float32)
    return {"image": image, "label": np.arange(rows, dtype=np.int32)}


def mixed(seed=0, mixup=0.0, cutmix=0.0, switch=0.5, rows=6, size=SIZE):
    """A batch before and after."""
    before = batch(np.random.default_rng(0), rows, size)
    kept = before["image"].copy()
    after = mix.parse(Mix(mixup, cutmix, switch))(before, np.random.default_rng(seed))
    assert np.array_equal(before["image"], kept)
    return before, after


def test_it_is_off_unless_one_of_them_is_on():
    assert mix.parse(config.Config().mix) is None


@pytest.mark.parametrize("fields", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}], ids=str)
@pytest.mark.parametrize("rows", [1, 5, 6])
def test_shapes_dtypes_and_labels(fields, rows):
    before, after = mixed(**fields, rows=rows)
    assert {name: (value.shape, value.dtype) for name, value in after.items()} == {
        "image": ((rows, SIZE, SIZE, 3), np.float32),
        "label": ((rows,), np.int32),
        "other_label": ((rows,), np.int32),
        "share": ((rows,), np.float32),
    }
    assert np.array_equal(after["label"], before["label"])
    assert after["other_label"].tolist() == list(range(rows))[::-1]
    assert len(set(after["share"].tolist())) == 1


@pytest.mark.parametrize("seed", range(5))
def test_mixup_is_the_convex_combination_of_an_image_and_the_one_its_label_names(seed):
    before, after = mixed(seed, mixup=0.8)
    images, share = before["image"].astype(np.float64), after["share"].astype(np.float64)[:, None, None, None]
    want = share * images + (1 - share) * images[after["other_label"]]
    np.testing.assert_allclose(after["image"], want, atol=1e-6)


@pytest.mark.parametrize("seed", range(30))
def test_cutmix_pastes_one_box_and_the_share_is_what_stays(seed):
    before, after = mixed(seed, cutmix=1.0)
    own, other = before["image"], before["image"][after["other_label"]]
    pasted = (after["image"] == other).all(-1)
    assert np.array_equal(after["image"], np.where(pasted[..., None], other, own))
    assert np.all(pasted == pasted[0])  # the images are noise: equal pixels are pasted ones
    rows, columns = (np.flatnonzero(pasted[0].any(axis)) for axis in (1, 0))
    assert pasted[0].sum() == len(rows) * len(columns)
    for found in (rows, columns):
        assert np.all(np.diff(found) == 1)
    assert np.all(after["share"] == np.float32(1 - pasted[0].mean()))


def shares(count, **fields):
    return np.array([mixed(seed, rows=1, **fields)[1]["share"][0] for seed in range(count)])


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_the_share_of_mixup_follows_its_beta_distribution(alpha):
    assert stats.kstest(shares(1000, mixup=alpha), stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_boxes_have_the_areas_of_a_beta_distribution_and_lie_anywhere():
    """Against the same box drawn in whole and cut at the edges of the unit square."""
    rng = np.random.default_rng(1)
    side, centre = np.sqrt(1 - rng.beta(1, 1, 200_000)), rng.random((2, 200_000))
    lengths = np.minimum(1, centre + side / 2) - np.maximum(0, centre - side / 2)
    want = 1 - lengths.prod(0)
    got = shares(1500, cutmix=1.0, size=100)
    assert stats.ks_2samp(got, want).statistic < 0.05  # whole, even lengths: 1 of 100 pixels less on average
    covered = np.zeros((SIZE, SIZE))
    for seed in range(400):
        before, after = mixed(seed, cutmix=1.0, rows=2)
        covered += (after["image"][0] != before["image"][0]).any(-1)
    assert covered.min() > 0


@pytest.mark.parametrize("switch", [0.0, 0.3, 1.0])
def test_where_both_are_on_switch_is_the_probability_of_cutmix(switch):
    found = []
    for seed in range(400):
        before, after = mixed(seed, mixup=1.0, cutmix=1.0, switch=switch, rows=2)
        found.append(np.isin(after["image"], before["image"]).all())  # pasted, not blended
    assert abs(np.mean(found) - switch) < 0.07 * (0 < switch < 1) + 1e-9


@pytest.mark.parametrize("switch", [0.0, 1.0])
def test_where_one_is_on_switch_does_not_count(switch):
    before, after = mixed(mixup=1.0, switch=switch)
    assert not np.isin(after["image"], before["image"]).all()
    before, after = mixed(cutmix=1.0, switch=switch)
    assert np.isin(after["image"], before["image"]).all()


# --- the pipeline ---


class Noise:
    """37 noise images whose label is their index; every third has none."""

    def __init__(self):
        self.class_names = []
        self.arrays = np.random.default_rng(0).integers(0, 256, (37, 8, 8, 3), dtype=np.uint8)

    def __len__(self):
        return len(self.arrays)

    def __getitem__(self, index):
        return {"image": Image.fromarray(self.arrays[index]), "label": index if index % 3 else -1}


MIXUP = Mix(mixup=1.0)
BOTH = mix.parse(Mix(0.8, 1.0, 0.5))
CROPS = "random_resized_crop|flip_lr|rand_augment|random_erasing"


def training(text="", one_mix=BOTH, seed=0, batch_size=6, rows=None):
    return pipeline.training(
        Noise(),
        Preprocess(8),
        augment.parse(text),
        batch_size=batch_size,
        seed=seed,
        mix=one_mix,
        rows=rows,
    )


def equal(one, other):
    return set(one) == set(other) and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("text", ["", CROPS])
def test_k_plus_k_mixed_batches_equal_2k(text):
    whole, head, tail = training(text), training(text), training(text)
    want = [next(whole) for _ in range(16)]
    for _ in range(8):
        next(head)
    tail.set_state(head.get_state())
    for one in want[8:]:
        assert equal(next(tail), one)
    assert len({one["share"][0] for one in want}) > 8


def test_batches_follow_from_the_seed_alone():
    first, again, other = next(training(CROPS)), next(training(CROPS)), next(training(CROPS, seed=1))
    assert equal(first, again)
    assert not np.array_equal(first["share"], other["share"])


def test_without_mixing_batches_have_the_keys_they_had():
    assert set(next(training(one_mix=None))) == {"image", "label"}


def test_mixing_changes_neither_the_order_nor_the_augmentation():
    """The middle row of a batch of an odd size is mixed with itself."""
    plain, changed = training(CROPS, None, batch_size=5), training(CROPS, mix.parse(MIXUP), batch_size=5)
    for _ in range(8):
        one, two = next(plain), next(changed)
        assert np.array_equal(one["label"], two["label"])
        np.testing.assert_allclose(one["image"][2], two["image"][2], atol=1e-6)


@pytest.mark.parametrize("rows", [[0, 1, 2], [3, 4, 5], [0, 5], [4]], ids=str)
def test_a_process_gets_its_rows_of_the_mixed_global_batch(rows):
    whole, part = training(CROPS), training(CROPS, rows=np.array(rows))
    for _ in range(8):
        assert equal(next(part), {name: value[rows] for name, value in next(whole).items()})


def test_a_row_is_mixed_with_its_mirror_image_in_the_batch():
    plain, mixed = training(one_mix=None), training(one_mix=mix.parse(MIXUP))
    for _ in range(4):
        before, after = next(plain), next(mixed)
        assert np.array_equal(after["other_label"], before["label"][::-1])
        share = after["share"][:, None, None, None]
        want = share * before["image"] + (1 - share) * before["image"][::-1]
        np.testing.assert_allclose(after["image"], want, atol=1e-6)


def test_the_first_crop_is_of_the_original():
    """A wide image: without the crop only its centre is ever seen."""
    image = Image.fromarray(np.arange(256, dtype=np.uint8)[None].repeat(64, 0))
    rng, eight = np.random.default_rng(0), Preprocess(8)
    seen = collections.defaultdict(set)
    for text in ("flip_lr", "random_resized_crop|flip_lr"):
        for _ in range(60):
            seen[text] |= set(np.asarray(augment.parse(text)(image, eight, rng)).ravel().tolist())
    assert min(seen["flip_lr"]) > 80
    assert min(seen["random_resized_crop|flip_lr"]) < 40


# --- the configuration ---


def check(**fields):
    one = config.default()
    one.data.update(train="embedded:digits", eval="embedded:digits")
    one.mix.update(fields)
    config.parse(one.to_dict())


@pytest.mark.parametrize(
    "fields", [{"mixup": -0.1}, {"cutmix": -1.0}, {"mixup": float("nan")}, {"switch": 1.5}, {"switch": -0.5}], ids=str
)
def test_numbers_out_of_range_are_named(fields):
    check(mixup=0.8, cutmix=1.0, switch=1.0)
    (name,) = fields
    with pytest.raises(UserError, match=rf"^mix\.{name} is [^.]*"):
        check(**fields)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_that_is_not_positive_is_named(temperature):
    one = config.default()
    one.data.update(train="embedded:digits", eval="embedded:digits")
    one.runs.rb_lra_kd.temperature = temperature
    with pytest.raises(UserError, match=r"^runs\.rb_lra_kd\.temperature is "):
        config.parse(one.to_dict())
