"""EfficientNetV2-M on ImageNet, as its authors trained it: four stages, up to 384 px.

jaxcls prepare tfds:imagenet2012            (once; says which two files to fetch by hand)
jaxcls train configs/imagenet/efficientnetv2_m.py
jaxcls evaluate runs/efficientnetv2_m --data.image-size 480 --data.crop-fraction 1

For a TPU slice: 4,096 images a step, 128 on each of 32 chips. With fewer chips, `jaxcls compile`
with your --topology says what fits; optimizer.micro_batches, with model.batch_norm 64, cuts the
batch into parts.
Expected: 85.2 % top-1 at 480 px (the authors' repository). Time: 13 hours on 32 TPUv3 cores (the
paper's table 7). Not yet trained with jaxcls. jaxcls/config/recipes.py describes the recipe.
"""

from jaxcls.config import Config
from jaxcls.config.recipes import efficientnetv2


def get_config() -> Config:
    return efficientnetv2(
        "efficientnetv2_m",
        image_size=384,
        dropout=(0.1, 0.4),
        last_level=20.0,
        last_mixup=0.2,
    )
