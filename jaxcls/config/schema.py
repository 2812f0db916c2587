"""The schema of an experiment's config: its fields, their types, ranges and defaults."""

import dataclasses
from typing import Annotated, Literal

from jaxcls.config.augment import (
    AnyAugmentation,
    RandomCrop,
    RandomFlip,
    Share,
)
from jaxcls.config.decoding import (
    ANY_ORDER,
    MAY_BE_EMPTY,
    Pattern,
    Range,
    Regex,
    leaves,
    metadata,
)

# The fields of ModelConfig that concern any network; the others are settings of jaxcls's own ones.
OF_ANY_NETWORK = {
    *("name", "options", "weights", "allow_missing", "allow_unused", "weights_ema"),
    *("head_prior", "mean", "std"),
}
OPERATIONAL = "operational"  # marks a field that may change when a run is resumed

Count = Annotated[int, Range(1)]
Index = Annotated[int, Range(0)]
DropRate = Annotated[float | tuple[float, ...], Range(0, below=1)]
Size = Annotated[int | tuple[int, int], Range(0), ANY_ORDER]
NonNegative = Annotated[float, Range(0)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    name: str = "efficientnetv2_b0"
    """efficientnetv2_{b0,b1,b2,b3,s,m,l,xl,rw_t,rw_s,rw_m}, efficientnet_{b0..b8,l2,es,em,el},
    efficientnet_lite{0..4}, resnet{18,34,50,101,152}; auto: the network of the weights;
    package.module:factory: a Flax module of your own"""
    options: dict[str, bool | int | float | str] = dataclasses.field(default_factory=dict)
    """Keyword arguments of the factory, if name is package.module:factory."""
    weights: str | None = None
    """Weights that training starts from: a preset, a weights file, hf:OWNER/REPO[@REVISION] on the
    Hugging Face Hub, or a run (None: random values)."""
    allow_missing: Annotated[tuple[Regex, ...], MAY_BE_EMPTY] = ()
    """Parameters that may be missing in the weights and then start at random: regular expressions
    of whole names such as block1a/project_conv/kernel. A new classifier need not be listed."""
    allow_unused: Annotated[tuple[Regex, ...], MAY_BE_EMPTY] = ()
    """Tensors of the weights that may stay unused, such as the layers of another head: regular
    expressions of whole names in the file."""
    weights_ema: bool = True
    """If a checkpoint has both the weights and their moving averages, use the averages."""
    head_scale: NonNegative = 1.0
    """Scale of a new classifier's random kernel; 0 makes it start at zeros."""
    head_prior: bool = False
    """Start a new classifier's bias at the logarithm of each class' share of the training data."""
    pooling: Literal["average", "max"] | None = None
    """How the last features are pooled over height and width (None: as for the weights, or
    average)."""
    dropout: DropRate = 0.2
    """Share of the pooled features dropped before the classifier; one rate, or one per stage of the
    training."""
    drop_path: DropRate = 0.2
    """Stochastic-depth rate, which rises linearly over the blocks: block i of n, counted from 0,
    has i/n of it; one rate, or one per stage of the training."""
    batch_norm: Literal["global"] | Count = "global"
    """Compute batch statistics over the whole batch, or over groups of this many consecutive
    examples."""
    batch_norm_momentum: Share = 0.9
    """Share of the old moving statistics that each step keeps."""
    batch_norm_epsilon: Annotated[float | None, Range(1e-12)] = None
    """Number added to the variances (None: that of the weights or the network)."""
    freeze_batch_norm: bool = False
    """Normalise with the moving statistics in training too, and do not update them."""
    padding: Literal["same", "symmetric"] | None = None
    """Padding of convolutions: same, as in TensorFlow, or symmetric, as in PyTorch (None: that of
    the weights or the network)."""
    mean: tuple[float, ...] | None = None
    """Numbers, one for each channel (red, green and blue), that are subtracted from images in
    [0, 1] (None: those of the weights or the network; for another number of channels, their mean
    for each channel)."""
    std: tuple[float, ...] | None = None
    """Numbers, one for each channel, that the difference is divided by (None: as for mean)."""
    remat: bool = False
    """Recompute each block in the backward pass: less memory, about a third more compute."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where examples come from and how they are batched."""

    source: str = "digits"
    """digits | tfds:NAME[:VERSION] | folder:PATH (PATH/train/CLASS/* or PATH/CLASS/*) | csv:FILE (a
    list of files and labels) | webdataset:SHARDS (a folder or pattern of tar files) |
    hf:NAME[:CONFIG] (a set of Hugging Face, or a folder that begins with ., / or ~)"""
    data_dir: Annotated[str | None, OPERATIONAL] = None
    """Folder of the prepared data sets (None: TFDS' default folder)."""
    prepare: Annotated[bool, OPERATIONAL] = False
    """Prepare a set of tfds or hf that is not prepared yet; this may download it."""
    image_key: str | None = None
    """tfds, hf: the feature with the image (None: found in the data set's description)."""
    label_key: str | None = None
    """tfds, hf: the feature with the label (None: found in the data set's description)."""
    labels: Literal["single", "multiple"] = "single"
    """Classes of an image: exactly one (single), or any number of them, also none (multiple; needs
    loss.name sigmoid or asymmetric)."""
    test_share: Share = 0.2
    """folder:PATH/CLASS/*: share of each class that belongs to the split test."""
    split_seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """folder: decides the order of the files, and for PATH/CLASS/* which are in the split test."""
    folder_index: Annotated[Literal["rebuild", "reuse"], OPERATIONAL] = "rebuild"
    """folder: list its files at every start (rebuild), or reuse the last list, which may be out of
    date (for millions of files on a slow network disk)."""
    train_split: str = "train"
    """TFDS split syntax, for example train[:90%]."""
    eval_split: str = "test"
    """Split that is evaluated during training and by `jaxcls evaluate`."""
    batch_size: Count = 64
    """Examples per step, over all devices."""
    sampling: Literal["uniform", "balanced"] = "uniform"
    """Which examples a training batch has: every example once in an epoch (uniform), or each class
    as often as any other, so that examples of rare classes come more often (balanced)."""
    repeats: Count = 1
    """Repeated augmentation: number of rows in a batch that an example gets, each augmented
    independently. An epoch then has that many times as many rows."""
    image_size: Size = 224
    """Height and width of the network's images, in pixels: one number for squares, or two (0: the
    size of the weights or the network)."""
    stage_image_sizes: Annotated[tuple[Count, ...], MAY_BE_EMPTY] = ()
    """Shorter side of the network's images in each stage of the training, which have the shape of
    image_size; they never fall, and the last is that of image_size (empty: always image_size)."""
    canvas_size: Index = 256
    """Height and width of the canvas for raw training images; larger images are reduced to it.
    About twice image_size keeps small crops sharp (0: twice the longer side of image_size)."""
    crop_fraction: Share = 0.875
    """Share of the resized image's height and width that a crop keeps (0: that of the weights, or
    0.875)."""
    interpolation: Literal["auto", "bilinear", "bicubic"] = "bilinear"
    """Filter for resizing in evaluation and prediction, antialiased (auto: that of the weights, or
    bilinear)."""
    channels: Count = 3
    """Channels of the images: 1 (grey), 3 (red, green and blue), 4 (also alpha, which is then kept)
    or, in TIFF and .npy files, any other number. Weights of another number are adapted."""
    value_range: tuple[float, float] | None = None
    """Range of images of more than 8 bits or of floating point: its low end becomes 0 and its high
    end 255, rounded and clipped (None: 16 bits without sign keep their highest 8; others are
    refused). Images of 8 bits stay as they are."""
    background: Annotated[str, Pattern("#[0-9a-fA-F]{6}")] = "#ffffff"
    """Colour behind transparent pixels, unless channels is 4."""
    max_pixels: Annotated[int | None, Range(1)] = None
    """Refuse images with more pixels as decompression bombs (None: 300 million for JPEG, which is
    decoded at a fraction of its size, and 178,956,970 for other formats)."""
    broken: Literal["error", "skip"] = "error"
    """If an image cannot be decoded: stop (error), or log it and leave it out (skip; in training,
    the next image takes its place)."""
    max_broken: Share = 0.01
    """skip: share of a split's images that may be broken."""
    last_batch: Literal["drop", "straddle"] = "drop"
    """Drop an epoch's last, short batch, or fill it from the next epoch (straddle)."""
    num_workers: Annotated[Index, OPERATIONAL] = 0
    """Processes that decode images; 0 decodes in threads of this process, which is best unless
    there are dozens of cores."""
    num_threads: Annotated[Count, OPERATIONAL] = 4
    """Threads that read and decode, in this process or in each worker. Each makes a whole batch, so
    as many batches are in memory, of batch_size x canvas_size x canvas_size x channels bytes,
    shared among the processes of a run."""
    prefetch: Annotated[Count, OPERATIONAL] = 2
    """Batches that are made and sent to the devices ahead of the step; on the host there are at
    least num_threads."""
    verify: Annotated[bool, OPERATIONAL] = False
    """Read all files of both splits at every start, and refuse to resume if the content of one has
    changed. Otherwise only names and numbers of files are compared."""
    cache_gib: Annotated[float, Range(0), OPERATIONAL] = 0.0
    """Memory for decoded training images, in GiB; they are kept if all, at canvas_size, fit."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The loss that is minimised."""

    name: Literal["softmax", "sigmoid", "asymmetric"] = "softmax"
    """Cross-entropy over the classes (softmax), binary cross-entropy of each class (sigmoid), or
    the asymmetric loss, which counts the many classes that an image does not have less
    (asymmetric)."""
    label_smoothing: Share = 0.1
    """Probability mass spread evenly over all classes."""
    focal: NonNegative = 0.0
    """softmax, sigmoid: exponent of the focal loss, for example 2: the surer the network is of a
    right answer, the less it counts (0: off)."""
    positive_focal: NonNegative = 0.0
    """asymmetric: exponent of the focal factor for classes that an image has."""
    negative_focal: NonNegative = 4.0
    """asymmetric: exponent of the focal factor for classes that it does not have."""
    margin: Share = 0.05
    """asymmetric: subtracted from the probability of a class that an image does not have, so that
    very small ones do not count."""
    class_weights: str | tuple[NonNegative, ...] | None = None
    """Factors on the loss for the classes that an image has: balanced (each class counts the same
    in all), one number for each class in the order of their names, or a JSON file of class names
    and numbers. They are scaled to a mean of 1 over the training set."""
    logit_adjustment: NonNegative = 0.0
    """softmax: factor on the logarithms of the classes' shares of the training data, which training
    adds to the logits, so that rare classes are predicted as readily as common ones; 1 is usual
    (0: off)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How gradients become updates."""

    name: str = "sgd"
    """Any optax optimizer: sgd, rmsprop, adamw, lamb, lion, ... (not lbfgs, noisy_sgd,
    optimistic_adam, rprop, sm3, which need more than gradients or take no schedule)."""
    learning_rate: NonNegative = 0.1
    """The schedule's highest learning rate."""
    options: dict[str, bool | int | float | str] = dataclasses.field(default_factory=dict)
    """Keyword arguments of the optax optimizer, for example momentum 0.9 nesterov True; string
    values are dtype names, as in mu_dtype bfloat16. --optimizer.options.NAME VALUE sets a single
    one, and --optimizer.options.NAME None removes it; freeze and rates work the same way."""
    weight_decay: NonNegative = 0.0
    """On kernels only, never on biases or norms. The optimizer's own decay where it has one (adamw,
    lamb, lion), else added to the gradient (sgd, rmsprop)."""
    freeze: dict[str, Share] = dataclasses.field(default_factory=dict)
    """Parameters that are not trained at first: a regular expression of whole names such as
    block1a/project_conv/kernel, and for what share of the training they are frozen (1: all)."""
    rates: dict[str, NonNegative] = dataclasses.field(default_factory=dict)
    """Factors on the learning rate of parameters, by regular expressions of whole names; the first
    match counts."""
    layer_decay: Share = 1.0
    """Factor on the learning rate from each block to the one before it; the classifier has 1."""
    clip_norm: Annotated[float | None, Range(0)] = None
    """Largest global norm of the gradients; larger ones are scaled down to it (None: no limit)."""
    micro_batches: Count = 1
    """Gradient accumulation: number of parts of a batch that are computed one after another."""
    ema_decay: Share = 0.0
    """Moving average of parameters and statistics, used by evaluation; 0 turns it off."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over time. All schedules warm up linearly and end after the last step."""

    name: Literal["warmup_hold_cosine", "cosine", "constant", "exponential"] = "warmup_hold_cosine"
    """Shape of the learning rate after the warmup."""
    start_learning_rate: NonNegative = 0.0
    """Learning rate at step 0, where the warmup begins."""
    warmup: Share = 0.1
    """Share of all steps that the warmup takes."""
    hold: Share = 0.45
    """warmup_hold_cosine: share of all steps at the highest learning rate."""
    decay_rate: Share = 0.97
    """exponential: factor of each stair."""
    decay_epochs: Annotated[float, Range(1e-6)] = 2.4
    """exponential: length of a stair, in epochs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are saved, and which are kept."""

    every_steps: Annotated[Count | None, OPERATIONAL] = None
    """Steps between checkpoints (None: one per epoch). The last step is always saved."""
    keep_latest: Annotated[Count, OPERATIONAL] = 2
    """Number of newest checkpoints to keep."""
    keep_best: Annotated[Index, OPERATIONAL] = 1
    """Number of checkpoints with the best top-1 to keep in addition."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the training state is split over the devices, which changes results only by rounding."""

    state: Annotated[Literal["replicated", "zero1", "fsdp"], OPERATIONAL] = "replicated"
    """replicated: a copy on every device; zero1: the optimizer's state and the moving averages are
    split over all devices; fsdp: these and the parameters are split over fsdp_devices."""
    fsdp_devices: Annotated[Count | None, OPERATIONAL] = None
    """fsdp: number of devices that share one copy of the state (None: the largest divisor of the
    number of devices that is at most 16)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One experiment."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augment: tuple[AnyAugmentation, ...] = (RandomFlip(), RandomCrop())
    """Random changes to the training images, applied on the device in this order."""
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)
    compute_dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Type of the network's arithmetic; parameters stay float32. float64 is for tests and needs
    JAX_ENABLE_X64=1; then parameters are float64 too."""
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    """Decides the initial parameters, the order of the data and every random draw."""
    num_epochs: Annotated[float | None, Range(1e-6)] = None
    """Length of the training in epochs; give this or num_steps."""
    num_steps: Count | None = None
    """Length of the training in steps."""
    stage_epochs: Annotated[tuple[Annotated[float, Range(1e-6)], ...], MAY_BE_EMPTY] = ()
    """Lengths of the stages of the training in epochs, which add up to num_epochs (empty: equal
    stages). Image sizes, drop rates and strengths with one value per stage need as many values."""
    eval_every_steps: Annotated[Count | None, OPERATIONAL] = None
    """Steps between evaluations (None: one per epoch). The last step is always evaluated."""
    log_every_steps: Annotated[Count, OPERATIONAL] = 20
    """Steps between lines in metrics.csv and TensorBoard."""
    log_images: Annotated[Index, OPERATIONAL] = 8
    """Number of images of the first batch, as the network gets them, to show in TensorBoard."""
    wandb_project: Annotated[str | None, OPERATIONAL] = None
    """Project of Weights & Biases to send the metrics to as well; needs the extra wandb, and a
    login or WANDB_MODE=offline (None: do not send them)."""
    on_non_finite: Annotated[Literal["stop", "skip"], OPERATIONAL] = "stop"
    """If the loss or the gradients of a step are not finite: end the training (stop), or leave
    parameters, statistics, moments and averages as they are and continue with the next step
    (skip)."""
    max_skipped_steps: Annotated[Count, OPERATIONAL] = 10
    """skip: end the training after this many skipped steps in a row."""
    stuck_after_seconds: Annotated[float, Range(0), OPERATIONAL] = 600.0
    """If one of several processes makes no progress for this long (six times as long while it
    starts), all end with status 1 and name it. A process alone says so; if it waits for data, it
    saves and ends. 0 turns this off."""


def operational_fields() -> frozenset[str]:
    """The dotted names of the fields that may change when a run is resumed."""
    return frozenset(
        name for name, hint in leaves(Config, prefix="") if OPERATIONAL in metadata(hint)
    )


def is_own_network(name: str) -> bool:
    """Whether `model.name` names a factory of the user's: package.module:factory."""
    return ":" in name
