"""Cat or dog: the data of the KerasCV guide "Classification with KerasCV", batches of 16 at 224.

jaxcls prepare tfds:cats_vs_dogs            (once; downloads 825 MB)
jaxcls train configs/guide/cats_vs_dogs.py

23,262 photos in one split; the last tenth is kept for evaluation, where the guide has none. The
guide fine-tunes ImageNet weights with SGD at 0.01; this file trains from scratch until weights can
be loaded. Neither time nor accuracy has been measured yet.
"""

from jaxcls.config import Config, DataConfig, ModelConfig, OptimizerConfig


def get_config() -> Config:
    return Config(
        model=ModelConfig(name="efficientnetv2_b0"),
        data=DataConfig(
            source="tfds:cats_vs_dogs",
            train_split="train[:90%]",
            eval_split="train[90%:]",
            batch_size=16,
            image_size=224,
            canvas_size=448,
        ),
        optimizer=OptimizerConfig(
            name="sgd", learning_rate=0.01, options={"momentum": 0.9}, weight_decay=5e-4
        ),
        num_epochs=20,
    )
