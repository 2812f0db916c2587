"""The block tables have the published parameter counts."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from jaxcls.models.registry import create_model, model_names, model_spec

# Parameters with 1000 classes, and parameters and moving statistics without the classifier (as
# Keras counts them, less the 7 numbers of the normalisation that its V1 models start with). Source:
# keras.applications; XL: its block table and the paper's 208 M; Lite and rw_t: timm.
COUNTS = {
    "efficientnetv2_b0": (7_139_704, 5_919_312),
    "efficientnetv2_b1": (8_141_052, 6_931_124),
    "efficientnetv2_b2": (10_096_086, 8_769_374),
    "efficientnetv2_b3": (14_358_406, 12_930_622),
    "efficientnetv2_s": (21_458_488, 20_331_360),
    "efficientnetv2_m": (54_139_356, 53_150_388),
    "efficientnetv2_l": (118_515_272, 117_746_848),
    "efficientnetv2_xl": (208_119_808, 207_615_832),
    "efficientnetv2_rw_t": (13_649_388, 12_743_412),
    "efficientnetv2_rw_s": (23_941_296, 22_309_144),
    "efficientnetv2_rw_m": (53_236_442, 51_390_674),
    "efficientnet_b0": (5_288_548, 4_049_564),
    "efficientnet_b1": (7_794_184, 6_575_232),
    "efficientnet_b2": (9_109_994, 7_768_562),
    "efficientnet_b3": (12_233_232, 10_783_528),
    "efficientnet_b4": (19_341_616, 17_673_816),
    "efficientnet_b5": (30_389_784, 28_513_520),
    "efficientnet_b6": (43_040_704, 40_960_136),
    "efficientnet_b7": (66_347_960, 64_097_680),
    "efficientnet_b8": (87_413_142, 84_976_174),
    "efficientnet_l2": (480_309_308, 475_894_996),
    "efficientnet_es": (5_438_392, 4_208_832),
    "efficientnet_em": (6_899_496, 5_686_304),
    "efficientnet_el": (10_589_712, 9_144_920),
    "efficientnet_lite0": (4_652_008, 3_413_024),
    "efficientnet_lite1": (5_416_680, 4_189_344),
    "efficientnet_lite2": (6_092_072, 4_869_168),
    "efficientnet_lite3": (8_197_096, 6_992_768),
    "efficientnet_lite4": (13_006_568, 11_837_936),
}


def _size(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


# The others differ from these in width, depth, repeats and filters only.
IN_CI = (
    *("efficientnetv2_b0", "efficientnetv2_b3", "efficientnetv2_s", "efficientnetv2_rw_t"),
    *("efficientnet_b0", "efficientnet_b7", "efficientnet_es"),
    *("efficientnet_lite0", "efficientnet_lite4"),
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in IN_CI else pytest.mark.long) for name in COUNTS],
)
def test_parameter_counts(name):
    model = create_model(name, num_classes=1000)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    total, headless = COUNTS[name]
    assert _size(shapes["params"]) == total
    assert _size(shapes) - _size(shapes["params"]["classifier"]) == headless


def test_every_model_is_counted():
    assert {name for name in model_names() if name.startswith("efficientnet")} == set(COUNTS)


def test_unknown_name_names_the_nearest():
    with pytest.raises(
        ValueError, match=r"model\.name: .*'efficientnetv2_b9'; did you mean 'effic"
    ):
        model_spec("efficientnetv2_b9")


def test_what_the_caller_gives_replaces_the_specs_own():
    changed = create_model(
        "efficientnet_b0", num_classes=2, padding="symmetric", std=(1, 1, 1)
    ).spec
    own = model_spec("efficientnet_b0")
    assert changed == dataclasses.replace(own, padding="symmetric", std=(1, 1, 1))
    assert create_model("efficientnet_b0", num_classes=2, batch_norm_epsilon=1e-5).spec == (
        dataclasses.replace(own, batch_norm_epsilon=1e-5)
    )
    assert create_model("efficientnet_b0", num_classes=2).spec == own


def test_input_conventions():
    assert model_spec("efficientnetv2_b0").mean == (0.485, 0.456, 0.406)
    small = model_spec("efficientnetv2_s")
    pixel = 200
    ours = (pixel / 255 - small.mean[0]) / small.std[0]
    assert ours == pytest.approx((pixel - 128) / 128)
    lite = model_spec("efficientnet_lite0")
    ours = (pixel / 255 - lite.mean[0]) / lite.std[0]
    assert ours == pytest.approx((pixel - 127) / 128)
