"""Rules between the fields of a config."""

import dataclasses
import math

from jaxcls.config.augment import (
    check_augment,
    mix_of,
    staged_strengths,
)
from jaxcls.config.decoding import (
    ConfigError,
    check_regex,
)
from jaxcls.config.schema import (
    OF_ANY_NETWORK,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    is_own_network,
)
from jaxcls.config.sizes import height_and_width

# The pixels of an image can be counted in int32, and a machine can run that many threads.
MAX_DATA = {
    "image_size": 2**14,
    "canvas_size": 2**15,
    "channels": 1024,
    "num_threads": 4096,
    "num_workers": 4096,
}

# The fields of LossConfig that only some losses use, and the names of these.
LOSSES_OF_FIELD = {
    "focal": ("softmax", "sigmoid"),
    "positive_focal": ("asymmetric",),
    "negative_focal": ("asymmetric",),
    "margin": ("asymmetric",),
    "logit_adjustment": ("softmax",),
}


def check_rules(config: Config) -> None:
    """Checks the rules between fields; training checks those that depend on the devices."""
    if (config.num_epochs is None) == (config.num_steps is None):
        raise ConfigError(
            "num_epochs, num_steps: give exactly one of the two "
            "(on the command line, None turns the other one off: --num-epochs None)"
        )
    schedule = config.schedule
    if schedule.name == "warmup_hold_cosine" and schedule.warmup + schedule.hold > 1:
        raise ConfigError(
            f"schedule.warmup, schedule.hold: the sum of these shares must be at most 1, got "
            f"{schedule.warmup} + {schedule.hold}"
        )
    batch_size = config.data.batch_size
    if batch_size % config.data.repeats:
        raise ConfigError(
            f"data.repeats: {config.data.repeats} does not divide data.batch_size {batch_size}"
        )
    if config.data.cache_gib and config.data.num_workers:
        raise ConfigError(
            "data.cache_gib, data.num_workers: worker processes do not share memory; with a cache, "
            "set num_workers to 0"
        )
    if 0 < config.data.crop_fraction < 0.01:
        raise ConfigError(
            f"data.crop_fraction: must be 0 or at least 0.01, got {config.data.crop_fraction}"
        )
    if config.model.name == "auto" and config.model.weights is None:
        raise ConfigError('model.name: "auto" means the network of model.weights; set the weights')
    _check_own_network(config.model)
    for field in ("freeze", "rates"):
        for pattern in getattr(config.optimizer, field):
            check_regex(pattern, field=f"optimizer.{field}")
    check_augment(config.augment, channels=config.data.channels)
    _check_channels(config)
    check_stages(config)
    mix = mix_of(config.augment)
    if mix and mix.group_size > batch_size // config.data.repeats:
        raise ConfigError(
            f"augment.{len(config.augment) - 1}.group_size: groups of {mix.group_size} would mix "
            f"repeats of the same image, which are {batch_size // config.data.repeats} rows apart "
            f"(data.batch_size / data.repeats)"
        )
    check_batch(config)
    _check_loss(config)


def _check_channels(config: Config) -> None:
    """Checks the fields that depend on the channels of the images."""
    channels, value_range = config.data.channels, config.data.value_range
    for field in ("mean", "std"):
        numbers = getattr(config.model, field)
        if numbers is not None and len(numbers) != channels:
            raise ConfigError(
                f"model.{field}: {list(numbers)} has {len(numbers)} numbers, but data.channels is "
                f"{channels}; give one for each channel"
            )
    if value_range is not None and value_range[0] == value_range[1]:
        raise ConfigError(
            f"data.value_range: both ends are {value_range[0]:g}; the low end becomes 0 and the "
            f"high end 255, so they must differ"
        )


def _check_loss(config: Config) -> None:
    """Checks that the fields of the loss apply to it, and that it fits the labels."""
    loss = config.loss
    if loss.name == "softmax" and config.data.labels == "multiple":
        raise ConfigError(
            "loss.name: softmax gives each image one class, but data.labels is multiple; use "
            "sigmoid or asymmetric"
        )
    for field, names in LOSSES_OF_FIELD.items():
        value = getattr(loss, field)
        if loss.name not in names and value != getattr(LossConfig(), field):
            raise ConfigError(
                f"loss.{field}: {value!r} has no effect on the loss {loss.name}, only on "
                f"{' and '.join(names)}"
            )


def _check_own_network(model: ModelConfig) -> None:
    """Checks that fields of jaxcls's own networks and of a user's own module are not mixed."""
    if not is_own_network(model.name):
        if model.options:
            raise ConfigError(
                f"model.options: {model.name} takes none; they are for a network of your own "
                f"(model.name package.module:factory)"
            )
        return
    for field in dataclasses.fields(ModelConfig):
        value = getattr(model, field.name)
        if field.name not in OF_ANY_NETWORK and value != getattr(ModelConfig(), field.name):
            raise ConfigError(
                f"model.{field.name}: has no effect on {model.name}, a network of your own; set it "
                f"in model.options, if the factory takes it"
            )


def check_batch(config: Config, num_devices: int = 1) -> None:
    """Checks that the batch splits evenly over devices, micro-batches and groups of examples.

    Args:
      config: the experiment.
      num_devices: the devices that share a batch; 1 checks what holds on any number of them.

    Raises:
      ConfigError: names the field and, for the batch size, the nearest sizes that work.
    """
    batch_size, micro_batches = config.data.batch_size, config.optimizer.micro_batches
    parts = num_devices * micro_batches
    if batch_size % parts:
        over = [f"{num_devices} devices"] * (num_devices > 1)
        over += [f"{micro_batches} micro-batches"] * (micro_batches > 1)
        smaller, larger = batch_size // parts * parts, -(-batch_size // parts) * parts
        sizes = f"{smaller} or {larger}" if smaller else str(larger)
        raise ConfigError(
            f"data.batch_size: {batch_size} does not split evenly over {' x '.join(over)}; use "
            f"{sizes}"
        )
    examples = batch_size // parts
    where = "of a micro-batch" if num_devices == 1 else "that a device has in a micro-batch"
    mix, group = mix_of(config.augment), config.model.batch_norm
    if mix and examples % mix.group_size:
        raise ConfigError(
            f"augment.{len(config.augment) - 1}.group_size: groups of {mix.group_size} do not "
            f"divide the {examples} examples {where}; use a divisor of {examples}"
        )
    if group != "global" and examples % group:
        raise ConfigError(
            f"model.batch_norm: groups of {group} do not divide the {examples} examples {where}; "
            f"use a divisor of {examples}"
        )


def check_data(data: DataConfig) -> None:
    """Checks that numbers are not too large for any machine's memory, before it is allocated.

    Raises:
      ConfigError: one is, or a side of the images is 0; the message names the field.
    """
    if isinstance(data.image_size, tuple) and 0 in data.image_size:
        raise ConfigError(
            f"data.image_size: height and width must be at least 1, got {list(data.image_size)}; "
            f"to take the size of the network, write 0"
        )
    for field, most in MAX_DATA.items():
        value = getattr(data, field)
        sides = height_and_width(value)
        if max(sides) > most:
            raise ConfigError(f"data.{field}: must be at most {most}, got {value}")


def check_stages(config: Config) -> None:
    """Checks the lengths of the stages, and the fields with one value per stage of the training.

    Raises:
      ConfigError: the lengths do not add up, image sizes fall or do not end at data.image_size (if
        that is known), or the numbers of stages differ.
    """
    epochs, sizes = config.stage_epochs, config.data.stage_image_sizes
    if epochs and config.num_epochs is None:
        raise ConfigError(
            f"stage_epochs: {list(epochs)} needs num_epochs; give it instead of num_steps "
            f"{config.num_steps}"
        )
    if config.num_epochs and epochs and not math.isclose(sum(epochs), config.num_epochs):
        raise ConfigError(
            f"stage_epochs: {list(epochs)} add up to {sum(epochs):g}, but num_epochs is "
            f"{config.num_epochs:g}"
        )
    if list(sizes) != sorted(sizes):
        raise ConfigError(
            f"data.stage_image_sizes: sizes must not fall from stage to stage, got {list(sizes)}"
        )
    shorter = min(height_and_width(config.data.image_size))
    if sizes and shorter not in (0, sizes[-1]):
        raise ConfigError(
            f"data.stage_image_sizes: the last of {list(sizes)} must be {shorter}, the shorter "
            f"side of data.image_size, which is the size of evaluation"
        )
    lists = {"stage_epochs": epochs, "data.stage_image_sizes": sizes}
    leading = next((name for name, values in lists.items() if values), None)
    if leading is None:  # each field then has its own number of equal stages
        return
    for field in ("dropout", "drop_path"):
        rate = getattr(config.model, field)
        lists[f"model.{field}"] = rate if isinstance(rate, tuple) else ()
    for name, values in (lists | staged_strengths(config.augment)).items():
        if values and len(values) != len(lists[leading]):
            raise ConfigError(
                f"{name}: {list(values)} has {len(values)} entries, one per stage, but {leading} "
                f"{list(lists[leading])} has {len(lists[leading])}"
            )
