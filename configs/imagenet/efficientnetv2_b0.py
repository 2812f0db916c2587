"""EfficientNetV2-B0 on ImageNet, as its authors trained it: four stages, up to 192 px.

jaxcls prepare tfds:imagenet2012            (once; says which two files to fetch by hand)
jaxcls train configs/imagenet/efficientnetv2_b0.py
jaxcls evaluate runs/efficientnetv2_b0 --data.image-size 224 --data.crop-fraction 0.875

For a TPU slice: 4,096 images a step, 128 on each of 32 chips. With fewer chips, `jaxcls compile`
with your --topology says what fits; optimizer.micro_batches, with model.batch_norm 64, cuts the
batch into parts.
Expected: 78.7 % top-1 at 224 px (the authors' repository). The time is not published. Not yet
trained with jaxcls. The authors used AutoAugment for B0-B3, which jaxcls does not have; this config
uses the RandAugment of S. jaxcls/config/recipes.py describes the recipe.
"""

from jaxcls.config import Config
from jaxcls.config.recipes import efficientnetv2


def get_config() -> Config:
    return efficientnetv2(
        "efficientnetv2_b0",
        image_size=192,
        dropout=(0.2, 0.2),
        last_level=15.0,
        bicubic=True,
    )
