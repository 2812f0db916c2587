"""The block tables of the networks, and the preprocessing of their weights.

Sources: the papers (Tan and Le 2019, https://arxiv.org/abs/1905.11946, table 1; 2021,
https://arxiv.org/abs/2104.00298, table 4) and their reference code; timm's block strings for its
own `rw` variants and for EdgeTPU. The tests check the tables with the weights of
`keras.applications`, and with the names and shapes of timm's.
"""

import dataclasses
import math

from jaxcls.models.efficientnet import BlockSpec, ModelSpec
from jaxcls.models.interface import NetworkSpec
from jaxcls.models.normalisation import IMAGENET_MEAN, IMAGENET_STD
from jaxcls.models.resnet import RESNETS

# For (x - 128) / 128 and (x - 127) / 128 on 0..255 images, but for images in [0, 1].
_128 = (128 / 255, 128 / 255, 128 / 255)
_127 = (127 / 255, 127 / 255, 127 / 255)

_SE_RATIO = 0.25

# --- EfficientNet, EfficientNet-Lite and EfficientNet-EdgeTPU ------------------------------------

# Repeats, filters, expansion, kernel size and stride of each row of B0; all are MBConv.
_V1_BLOCKS = (
    (1, 16, 1, 3, 1),
    (2, 24, 6, 3, 2),
    (2, 40, 6, 5, 2),
    (3, 80, 6, 3, 2),
    (3, 112, 6, 5, 1),
    (4, 192, 6, 5, 2),
    (1, 320, 6, 3, 1),
)


def _v1(name: str, *, width: float, depth: float, image_size: int, lite: bool = False) -> ModelSpec:
    """Makes a variant of V1; Lite has only operations that suit fixed-point hardware."""
    first_and_last = (0, len(_V1_BLOCKS) - 1)
    blocks = tuple(
        BlockSpec(
            fused=False,
            repeats=repeats if lite and index in first_and_last else math.ceil(depth * repeats),
            filters=_round_up_filters(filters, width),
            expansion=expansion,
            stride=stride,
            se_ratio=0.0 if lite else _SE_RATIO,
            kernel_size=kernel_size,
        )
        for index, (repeats, filters, expansion, kernel_size, stride) in enumerate(_V1_BLOCKS)
    )
    return ModelSpec(
        name=name,
        stem_filters=32 if lite else _round_up_filters(32, width),
        blocks=blocks,
        head_filters=1280 if lite else _round_up_filters(1280, width),
        image_size=image_size,
        mean=_127 if lite else IMAGENET_MEAN,
        std=_128 if lite else IMAGENET_STD,
        activation="relu6" if lite else "silu",
    )


# Fused, repeats, filters, expansion, kernel size and stride of each row of EdgeTPU-S.
_EDGE_BLOCKS = (
    (True, 1, 24, 4, 3, 1),
    (True, 2, 32, 8, 3, 2),
    (True, 4, 48, 8, 3, 2),
    (False, 5, 96, 8, 5, 2),
    (False, 4, 144, 8, 5, 1),
    (False, 2, 192, 8, 5, 2),
)


def _edge(name: str, *, width: float, depth: float, image_size: int) -> ModelSpec:
    """Makes a variant of EfficientNet-EdgeTPU, which replaces SiLU and squeeze-and-excite.

    In the first row, the channels inside a block are a multiple of its output channels, and nothing
    is added to the output.
    """
    blocks = tuple(
        BlockSpec(
            fused=fused,
            repeats=math.ceil(depth * repeats),
            filters=_round_up_filters(filters, width),
            expansion=expansion,
            stride=stride,
            se_ratio=0.0,
            kernel_size=kernel_size,
        )
        for fused, repeats, filters, expansion, kernel_size, stride in _EDGE_BLOCKS
    )
    first = blocks[0]
    first = dataclasses.replace(
        first, inner_filters=first.expansion * first.filters, residual=False
    )
    return ModelSpec(
        name=name,
        stem_filters=_round_up_filters(32, width),
        blocks=(first, *blocks[1:]),
        head_filters=_round_up_filters(1280, width),
        image_size=image_size,
        mean=_127,
        std=_128,
        activation="relu",
    )


# --- EfficientNetV2 ------------------------------------------------------------------------------

_V2_EXPANSIONS = (1, 4, 4, 4, 6, 6, 6)
_V2_STRIDES = (1, 2, 2, 2, 1, 2, 1)
_V2_FUSED_STAGES = 3


def _v2_blocks(repeats: tuple[int, ...], filters: tuple[int, ...]) -> tuple[BlockSpec, ...]:
    return tuple(
        BlockSpec(
            fused=index < _V2_FUSED_STAGES,
            repeats=repeats[index],
            filters=filters[index],
            expansion=_V2_EXPANSIONS[index],
            stride=_V2_STRIDES[index],
            se_ratio=0.0 if index < _V2_FUSED_STAGES else _SE_RATIO,
        )
        for index in range(len(repeats))
    )


def _v2_b(name: str, *, width: float, depth: float, image_size: int) -> ModelSpec:
    repeats = tuple(math.ceil(depth * r) for r in (1, 2, 2, 3, 5, 8))
    filters = tuple(_round_filters(f, width) for f in (16, 32, 48, 96, 112, 192))
    return ModelSpec(
        name=name,
        stem_filters=_round_filters(32, width),
        blocks=_v2_blocks(repeats, filters),
        head_filters=_round_filters(1280, width),
        image_size=image_size,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def _v2(
    name: str, *, stem: int, repeats: tuple[int, ...], filters: tuple[int, ...], image_size: int
) -> ModelSpec:
    return ModelSpec(
        name=name,
        stem_filters=stem,
        blocks=_v2_blocks(repeats, filters),
        head_filters=1280,
        image_size=image_size,
        mean=_128,
        std=_128,
    )


def _rw(
    name: str,
    *,
    stem: int,
    repeats: tuple[int, ...],
    filters: tuple[int, ...],
    head: int,
    image_size: int,
    expands_first: bool = True,
) -> ModelSpec:
    """Makes a V2 of timm's own, with PyTorch's conventions.

    S and M follow a figure of the paper and not its code: the blocks of the first stage have an
    expansion convolution (`expands_first`), although it does not widen.
    """
    spec = _v2(name, stem=stem, repeats=repeats, filters=filters, image_size=image_size)
    first, *others = spec.blocks
    if expands_first:
        first = dataclasses.replace(first, inner_filters=first.filters)
    return dataclasses.replace(
        spec,
        blocks=(first, *others),
        head_filters=head,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        padding="symmetric",
        batch_norm_epsilon=1e-5,
    )


# --- Both ----------------------------------------------------------------------------------------


def _round_filters(filters: int, width: float) -> int:
    """Rounds `filters` times `width` to the nearest multiple of 8."""
    return max(8, int(filters * width + 4) // 8 * 8)


def _round_up_filters(filters: int, width: float) -> int:
    """As `_round_filters`, but adds 8 if rounding removes more than a tenth."""
    rounded = _round_filters(filters, width)
    return rounded + 8 if rounded < 0.9 * filters * width else rounded


SPECS: dict[str, NetworkSpec] = {
    spec.name: spec
    for spec in (
        _v2_b("efficientnetv2_b0", width=1.0, depth=1.0, image_size=224),
        _v2_b("efficientnetv2_b1", width=1.0, depth=1.1, image_size=240),
        _v2_b("efficientnetv2_b2", width=1.1, depth=1.2, image_size=260),
        _v2_b("efficientnetv2_b3", width=1.2, depth=1.4, image_size=300),
        _v2(
            "efficientnetv2_s",
            stem=24,
            repeats=(2, 4, 4, 6, 9, 15),
            filters=(24, 48, 64, 128, 160, 256),
            image_size=384,
        ),
        _v2(
            "efficientnetv2_m",
            stem=24,
            repeats=(3, 5, 5, 7, 14, 18, 5),
            filters=(24, 48, 80, 160, 176, 304, 512),
            image_size=480,
        ),
        _v2(
            "efficientnetv2_l",
            stem=32,
            repeats=(4, 7, 7, 10, 19, 25, 7),
            filters=(32, 64, 96, 192, 224, 384, 640),
            image_size=480,
        ),
        _v2(
            "efficientnetv2_xl",
            stem=32,
            repeats=(4, 8, 8, 16, 24, 32, 8),
            filters=(32, 64, 96, 192, 256, 512, 640),
            image_size=512,
        ),
        _rw(
            "efficientnetv2_rw_t",
            stem=24,
            repeats=(2, 4, 4, 6, 9, 14),
            filters=(24, 40, 48, 104, 128, 208),
            head=1024,
            image_size=224,
            expands_first=False,
        ),
        _rw(
            "efficientnetv2_rw_s",
            stem=24,
            repeats=(2, 4, 4, 6, 9, 15),
            filters=(24, 48, 64, 128, 160, 272),
            head=1792,
            image_size=288,
        ),
        _rw(
            "efficientnetv2_rw_m",
            stem=32,
            repeats=(3, 5, 5, 8, 15, 24),
            filters=(32, 56, 80, 152, 192, 328),
            head=2152,
            image_size=320,
        ),
        _v1("efficientnet_b0", width=1.0, depth=1.0, image_size=224),
        _v1("efficientnet_b1", width=1.0, depth=1.1, image_size=240),
        _v1("efficientnet_b2", width=1.1, depth=1.2, image_size=260),
        _v1("efficientnet_b3", width=1.2, depth=1.4, image_size=300),
        _v1("efficientnet_b4", width=1.4, depth=1.8, image_size=380),
        _v1("efficientnet_b5", width=1.6, depth=2.2, image_size=456),
        _v1("efficientnet_b6", width=1.8, depth=2.6, image_size=528),
        _v1("efficientnet_b7", width=2.0, depth=3.1, image_size=600),
        _v1("efficientnet_b8", width=2.2, depth=3.6, image_size=672),
        _v1("efficientnet_l2", width=4.3, depth=5.3, image_size=800),
        _edge("efficientnet_es", width=1.0, depth=1.0, image_size=224),
        _edge("efficientnet_em", width=1.0, depth=1.1, image_size=240),
        _edge("efficientnet_el", width=1.2, depth=1.4, image_size=300),
        _v1("efficientnet_lite0", width=1.0, depth=1.0, image_size=224, lite=True),
        _v1("efficientnet_lite1", width=1.0, depth=1.1, image_size=240, lite=True),
        _v1("efficientnet_lite2", width=1.1, depth=1.2, image_size=260, lite=True),
        _v1("efficientnet_lite3", width=1.2, depth=1.4, image_size=280, lite=True),
        _v1("efficientnet_lite4", width=1.4, depth=1.8, image_size=300, lite=True),
        *RESNETS,
    )
}
