"""Builds the parts of a training, which training, benchmarks and rehearsals share."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxcls.config import Config, check_batch
from jaxcls.config.progressive import image_size_at, image_sizes
from jaxcls.config.sizes import ImageSize
from jaxcls.distributed.mesh import split_by_example
from jaxcls.distributed.precision import traced_for
from jaxcls.models.interface import Network, Variables
from jaxcls.models.registry import model_from_config, variables_template
from jaxcls.training.class_balance import class_weights, prior_logits
from jaxcls.training.losses import make_training_loss
from jaxcls.training.parameter_rates import (
    make_training_optimizer,
    rate_factors,
    trains_alike,
    unfreeze_steps,
)
from jaxcls.training.schedules import Plan, make_plan
from jaxcls.training.state import TrainState, init_state, state_shardings
from jaxcls.training.step import make_train_step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """Everything built from a config: the network, the plan, the jitted steps, the shardings.

    Attributes:
      config: the config that all parts follow from.
      mesh: the devices.
      model: the network.
      plan: the length of the training and its learning rate.
      steps: for each image size of the training, in rising order, the jitted
        `(state, batch) -> (state, metrics)`, which donates the state (`make_train_step`).
      make_state: the jitted `(given) -> state` on the mesh (`init_state`).
      shardings: the sharding of each array of the state.
    """

    config: Config
    mesh: Mesh
    model: Network
    plan: Plan
    steps: Mapping[ImageSize, Any]
    make_state: Callable[[Variables], TrainState]
    shardings: TrainState

    def image_size_at(self, step: int) -> ImageSize:
        """The size of the images that the network sees at a step, counted from 0."""
        return image_size_at(self.config, step, self.plan.stage_ends)

    def init(self, given: Variables | None = None) -> TrainState:
        """Makes the state before the first step, with the given values of some variables."""
        return self.make_state(given or {})

    def abstract_state(self) -> Any:
        """Shapes, dtypes and shardings of the state, without making it."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            jax.eval_shape(self.init),
            self.shardings,
        )

    def abstract_batch(self) -> Any:
        """Shapes, dtypes and shardings of a training batch, without reading one."""
        data, sharding = self.config.data, split_by_example(self.mesh)
        canvases = (data.batch_size, data.canvas_size, data.canvas_size, data.channels)
        labels, dtype = (data.batch_size,), jnp.int32
        if data.labels == "multiple":
            labels, dtype = (data.batch_size, self.model.num_classes), jnp.uint8
        return {
            "images": jax.ShapeDtypeStruct(canvases, jnp.uint8, sharding=sharding),
            "sizes": jax.ShapeDtypeStruct((data.batch_size, 2), jnp.int32, sharding=sharding),
            "labels": jax.ShapeDtypeStruct(labels, dtype, sharding=sharding),
        }

    def compile_step(self, image_size: ImageSize | None = None) -> "CompiledStep":
        """Traces and compiles the step of one image size (None: the last and largest)."""
        step = self.steps[image_size or self.config.data.image_size]
        start = time.perf_counter()
        lowered = step.lower(self.abstract_state(), self.abstract_batch())
        middle = time.perf_counter()
        compiled = lowered.compile()
        end = time.perf_counter()
        return CompiledStep(
            program=compiled, trace_seconds=middle - start, compile_seconds=end - middle
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledStep:
    """A compiled training step, and how long compiling took.

    Attributes:
      program: `(state, batch) -> (state, metrics)` for arrays as in `abstract_batch`; it donates
        the state.
      trace_seconds: from Python to the compiler's input.
      compile_seconds: from the compiler's input to machine code.
    """

    program: Any
    trace_seconds: float
    compile_seconds: float


def build_training(
    config: Config,
    *,
    num_classes: int,
    num_examples: int,
    mesh: Mesh,
    class_counts: Sequence[int] | None = None,
) -> Training:
    """Builds the training of a config. Nothing is compiled yet.

    Args:
      config: the experiment, resolved.
      num_classes: the classes of the training data.
      num_examples: the number of training examples.
      mesh: the devices.
      class_counts: the examples of each class in the training data, from which class weights and
        the logit adjustment follow (None: equally many of each, which gives the same program).

    Raises:
      ConfigError: a field does not fit the devices or the data, or names something unknown.
    """
    check_batch(config, mesh.size)
    counts = np.asarray([1] * num_classes if class_counts is None else class_counts)
    losses = make_training_loss(
        config.loss,
        class_weights=class_weights(config.loss, counts),
        class_prior=prior_logits(counts, loss="softmax"),
    )
    model = model_from_config(config, num_classes=num_classes)
    plan = make_plan(config, num_examples)
    params = variables_template(model, image_size=config.data.image_size)["params"]
    unfreeze_at = unfreeze_steps(config.optimizer, params, num_steps=plan.num_steps)
    factors = rate_factors(config.optimizer, params, model.layers())
    optimizer = make_training_optimizer(
        config.optimizer,
        plan.learning_rate,
        unfreeze_at=unfreeze_at,
        factors=factors,
        num_steps=plan.num_steps,
    )
    make_state = functools.partial(
        traced_for(model.compute_dtype)(init_state),
        model,
        optimizer,
        seed=config.seed,
        image_size=config.data.image_size,
        use_ema=config.optimizer.ema_decay > 0,
        use_skipping=config.on_non_finite == "skip",
    )
    shapes = jax.eval_shape(make_state, {})
    shardings, update_shardings = state_shardings(shapes, config.parallel, mesh)
    return Training(
        config=config,
        mesh=mesh,
        model=model,
        plan=plan,
        steps={
            image_size: make_train_step(
                config,
                model,
                optimizer,
                plan,
                image_size=image_size,
                unfreeze_at=unfreeze_at,
                alike=trains_alike(unfreeze_at, factors),
                losses=losses,
                mesh=mesh,
                shardings=shardings,
                update_shardings=update_shardings,
            )
            for image_size in dict.fromkeys(image_sizes(config))
        },
        make_state=jax.jit(make_state, out_shardings=shardings),
        shardings=shardings,
    )
