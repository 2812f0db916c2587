"""EfficientNetV2-B3 on ImageNet, as its authors trained it: four stages, up to 240 px.

jaxcls prepare tfds:imagenet2012            (once; says which two files to fetch by hand)
jaxcls train configs/imagenet/efficientnetv2_b3.py
jaxcls evaluate runs/efficientnetv2_b3 --data.image-size 300 --data.crop-fraction 0.9036

For a TPU slice: 4,096 images a step, 128 on each of 32 chips. With fewer chips, `jaxcls compile`
with your --topology says what fits; optimizer.micro_batches, with model.batch_norm 64, cuts the
batch into parts.
Expected: 82.1 % top-1 at 300 px (the authors' repository). The time is not published. Not yet
trained with jaxcls. The authors used AutoAugment for B0-B3, which jaxcls does not have; this config
uses the RandAugment of S. jaxcls/config/recipes.py describes the recipe.
"""

from jaxcls.config import Config
from jaxcls.config.recipes import efficientnetv2


def get_config() -> Config:
    return efficientnetv2(
        "efficientnetv2_b3",
        image_size=240,
        dropout=(0.3, 0.3),
        last_level=15.0,
        bicubic=True,
    )
