"""CIFAR-10 from ImageNet's weights: EfficientNetV2-S, the 32-pixel images enlarged to 384.

jaxcls prepare tfds:cifar10                 (once; downloads 170 MB and needs the extra `prepare`)
jaxcls train configs/cifar10_transfer.py    (the first time, fetches 88 MB of weights)
jaxcls train configs/cifar10_transfer.py --data.source tfds:cifar100

For eight accelerators: 64 images each. Expected: 98.7 % top-1, on CIFAR-100 91.5 % (the paper's
table 8, means of five runs); the time is not published. Not yet trained with jaxcls.

EfficientNetV2's transfer (section 5.3): 10,000 steps of 512 images, a cosine from 0.001, no weight
decay, cutout. What the paper leaves open is as in the reference code.
"""

from jaxcls.config import Config, DataConfig
from jaxcls.config.recipes import efficientnetv2_fine_tuning


def get_config() -> Config:
    return efficientnetv2_fine_tuning(
        "efficientnetv2_s_imagenet",
        data=DataConfig(
            source="tfds:cifar10",
            batch_size=512,
            image_size=384,
            canvas_size=32,
            crop_fraction=1.0,
            cache_gib=1,
        ),
        warmup=0.01,
        num_steps=10_000,
    )
