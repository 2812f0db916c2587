"""EfficientNetV2-S from ImageNet-21k to ImageNet's 1,000 classes.

jaxcls prepare tfds:imagenet2012            (once; says which two files to fetch by hand)
jaxcls train configs/imagenet/finetune_21k.py
jaxcls train configs/imagenet/finetune_21k.py --model.name efficientnetv2_m \\
  --model.weights efficientnetv2_m_imagenet21k --data.image-size 480

For a TPU slice: 512 images a step, 32 on each of 16 chips. Expected: 84.9 % top-1 for S at 384 px,
86.2 % for M and 86.9 % for L at 480 (their repository's table); the time of this part is not
published. Not yet trained with jaxcls.

15 epochs with a cosine, as the paper says (section 5.2). The rest is as in the reference code's
fine-tuning: hardly any dropout, a lower learning rate, and cutout with noise. Photos are cut to
their middle square, where that code squeezes them into one.
"""

from jaxcls.config import Config, DataConfig
from jaxcls.config.recipes import efficientnetv2_fine_tuning


def get_config() -> Config:
    return efficientnetv2_fine_tuning(
        "efficientnetv2_s_imagenet21k",
        data=DataConfig(
            source="tfds:imagenet2012",
            eval_split="validation",
            batch_size=512,
            image_size=384,
            canvas_size=512,
            crop_fraction=1.0,
            num_threads=6,
        ),
        warmup=1 / 15,
        weight_decay=1e-5,
        num_epochs=15,
    )
