"""Everything that training changes, as one pytree of arrays."""

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array
from jax.sharding import Mesh

from jaxcls.config import ParallelConfig
from jaxcls.config.sizes import ImageSize, height_and_width
from jaxcls.distributed.mesh import DATA_AXIS, FSDP_AXIS, replicated, split_leaves
from jaxcls.distributed.random_keys import random_key
from jaxcls.models.interface import Network, PyTree, Variables
from jaxcls.models.registry import overlay


@struct.dataclass(kw_only=True)
class TrainState:
    """The state between two steps.

    Random draws need no state: they follow from the config's seed and `step`.

    Attributes:
      step: int32 scalar, the number of steps that were taken or skipped.
      params: the network's parameters.
      batch_stats: the moving statistics of the batch norms.
      opt_state: the optimizer's state.
      ema: moving averages {"params", "batch_stats"}, or None if the config keeps none.
      skipped: int32 scalar, the number of steps in a row, up to the last one, that were skipped, or
        None if the config does not skip steps.
    """

    step: Array
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    ema: Variables | None
    skipped: Array | None = None

    @property
    def variables(self) -> Variables:
        """The network's variables as the last step left them."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def eval_variables(self) -> Variables:
        """What evaluation and prediction use: the moving averages if the config keeps them."""
        return self.ema or self.variables


def init_state(
    model: Network,
    optimizer: optax.GradientTransformation,
    given: Variables,
    *,
    seed: int,
    image_size: ImageSize,
    use_ema: bool,
    use_skipping: bool,
) -> TrainState:
    """Makes the state before the first step; a pure function, made to be jitted.

    Args:
      model: the network.
      optimizer: made for the network's parameters.
      given: known values, such as pretrained ones: any part of {"params", "batch_stats"}. The other
        parameters are drawn at random.
      seed: the seed of the random values.
      image_size: of the images.
      use_ema: whether to keep moving averages.
      use_skipping: whether to skip steps that are not finite, and count them.
    """
    images = jnp.zeros((1, *height_and_width(image_size), model.spec.channels))
    variables = overlay(model.init(random_key(seed), images), given)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        ema={"params": params, "batch_stats": batch_stats} if use_ema else None,
        skipped=jnp.zeros((), jnp.int32) if use_skipping else None,
    )


def state_shardings(
    shapes: TrainState, parallel: ParallelConfig, mesh: Mesh
) -> tuple[TrainState, PyTree]:
    """The sharding of each array of the state, and of each parameter's gradient and update."""
    everywhere = replicated(mesh)
    whole = jax.tree.map(lambda _: everywhere, shapes)
    if parallel.state == "replicated":
        return whole, whole.params
    axis = FSDP_AXIS if parallel.state == "fsdp" else DATA_AXIS
    split = split_leaves(shapes, mesh, axis)
    params = split.params if parallel.state == "fsdp" else whole.params
    return whole.replace(params=params, opt_state=split.opt_state, ema=split.ema), split.params
