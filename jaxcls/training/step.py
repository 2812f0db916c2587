"""One training step as one compiled function over the mesh."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcls.augment.pipeline import make_augment
from jaxcls.config import Config
from jaxcls.config.progressive import progress
from jaxcls.config.sizes import ImageSize
from jaxcls.data.device import BATCH_FIELDS
from jaxcls.distributed.compiler_options import compiler_options
from jaxcls.distributed.mesh import (
    batch_spec,
    has_gpus,
    has_tpus,
    kernels_on,
    replicated,
    row_major,
    split_by_example,
    supports_triton,
)
from jaxcls.distributed.precision import traced_for
from jaxcls.distributed.random_keys import random_key
from jaxcls.models.interface import Network, PyTree
from jaxcls.models.normalize import normalize
from jaxcls.training.accuracy import count_hits
from jaxcls.training.ema import update_ema
from jaxcls.training.fused_update import FusedUpdate, update_each
from jaxcls.training.losses import Loss, soft_labels
from jaxcls.training.norms import tree_norm
from jaxcls.training.parameter_rates import stop_frozen, zero_frozen
from jaxcls.training.schedules import Plan
from jaxcls.training.skipping import count_skipped, unless_skipped
from jaxcls.training.state import TrainState

Batch = dict[str, Array]
Metrics = dict[str, Array]


def make_train_step(
    config: Config,
    model: Network,
    optimizer: optax.GradientTransformation,
    plan: Plan,
    *,
    image_size: ImageSize,
    unfreeze_at: PyTree,
    alike: bool,
    losses: Loss,
    mesh: Mesh,
    shardings: TrainState,
    update_shardings: PyTree,
) -> Any:
    """Makes the jitted step `(state, batch) -> (state, metrics)`, which donates the state.

    The batch is {"images": uint8 [batch, canvas, canvas, channels], "sizes": int32 [batch, 2],
    "labels": int32 [batch]}, split over the mesh by example; with several labels an image the
    labels are multi-hot, uint8 [batch, classes]. Metrics are float32 scalars: loss (of `losses`),
    top1, top5 (shares of the batch), grad_norm, learning_rate, and the norms of the new params,
    batch_stats and ema; top1 and top5 compare with the argmax of the mixed labels, or with several
    labels with the classes that make up half of the mixed image. If the state counts skipped steps,
    a step whose loss or grad_norm is not finite is skipped, and there is an int32 metric, skipped:
    the number of steps in a row that were skipped, up to this one (0: it was taken).

    The network sees images of `image_size` pixels, the size of one or more stages of the plan; the
    strength of the augmentation and the drop rates follow from the stage that the step is in. Each
    parameter trains from its step of `unfreeze_at` on (`unfreeze_steps`); `alike` says whether the
    optimizer is the same for all parameters (`trains_alike`).

    The state has the shardings `shardings`, and gradients and updates have `update_shardings`:
    where `update_shardings` split a parameter, each device updates its part. The network computes
    with whole parameters, so that no image moves between devices.

    Every draw follows from the config's seed, the step and the example's place in the batch. With
    grouped batch norm, micro-batches give the same step as the whole batch.
    """
    augment = make_augment(
        config.augment,
        image_size=image_size,
        crop_fraction=config.data.crop_fraction,
        mesh=mesh,
    )
    everywhere = replicated(mesh)
    decay = config.optimizer.ema_decay
    whole = config.parallel.state == "replicated"
    norm = functools.partial(tree_norm, together=whole and not has_tpus(mesh))

    def share_of_loss(
        params: PyTree, batch_stats: PyTree, batch: Batch, *, keys: Array, done: Array
    ):
        augment_key, dropout_key = keys
        labels = soft_labels(batch["labels"], model.num_classes)
        with jax.named_scope("augment"):
            images, labels = augment(
                augment_key, done, batch["images"], batch["sizes"], labels, batch["positions"]
            )
        with jax.named_scope("model"):
            logits, updated = model.apply(
                {
                    "params": stop_frozen(params, unfreeze_at, num_steps=plan.num_steps),
                    "batch_stats": batch_stats,
                },
                normalize(images, model.spec),
                train=True,
                positions=batch["positions"],
                progress=done,
                rngs={"dropout": dropout_key},
                mutable=["batch_stats"],
            )
        assert isinstance(logits, Array)
        with jax.named_scope("loss"):
            loss = jnp.sum(losses(logits, labels))
            several = batch["labels"].ndim == 2
            right = labels >= 0.5 if several else jnp.argmax(labels, axis=-1)
            sums = {"loss": loss, **count_hits(logits, right)}
        # Micro-batches add up to the mean over the batch, and no gradient need be divided.
        return loss / config.data.batch_size, (updated.get("batch_stats", {}), sums)

    gradients = jax.grad(share_of_loss, has_aux=True)

    @traced_for(model.compute_dtype)
    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        keys = step_keys(config.seed, state.step)
        batch_size = batch["labels"].shape[0]
        batch = {**batch, "positions": jnp.arange(batch_size, dtype=jnp.int32)}
        compute = functools.partial(
            gradients,
            jax.lax.with_sharding_constraint(state.params, everywhere),
            state.batch_stats,
            keys=keys,
            done=progress(state.step, plan.stage_ends),
        )
        with kernels_on(mesh):
            if config.optimizer.micro_batches == 1:
                grads, (batch_stats, sums) = compute(batch)
            else:
                grads, (batch_stats, sums) = accumulate(
                    compute, split_rows(batch, config.optimizer.micro_batches, mesh)
                )
        sums = jax.tree.map(lambda total: total / batch_size, sums)
        grads = jax.lax.with_sharding_constraint(grads, update_shardings)
        grads = zero_frozen(grads, unfreeze_at, state.step)
        if has_gpus(mesh):
            # Otherwise XLA updates the state in the layout of the gradients, and copies it back.
            grads = jax.tree.map(row_major, grads)
        skipped = state.skipped
        if skipped is not None:  # the compiler computes the norm once
            skipped = count_skipped(skipped, loss=sums["loss"], grad_norm=norm(grads))
        with jax.named_scope("update"):
            fused = FusedUpdate(optimizer, decay, mesh)
            in_kernels = alike and whole and supports_triton(mesh)
            fits = in_kernels and fused.fits(state.params)
            update = fused if fits else update_each(optimizer, decay)
            averages = state.ema["params"] if state.ema else None
            params, opt_state, averages = update(
                grads, state.opt_state, state.params, averages, step=state.step, skipped=skipped
            )
            batch_stats = unless_skipped(batch_stats, state.batch_stats, skipped=skipped)
            ema = state.ema
            if ema is not None:
                averaged = update_ema(ema["batch_stats"], batch_stats, step=state.step, decay=decay)
                averaged = unless_skipped(averaged, ema["batch_stats"], skipped=skipped)
                ema = {"params": averages, "batch_stats": averaged}
        # The loss is of the old parameters. The norms tell whether the new state is finite, too.
        new = {"params": params, "batch_stats": batch_stats, "ema": ema}
        norms = {f"{name}_norm": norm(tree) for name, tree in new.items() if tree}
        metrics = {
            "loss": sums["loss"],
            "top1": sums["top1"],
            "top5": sums["top5"],
            "grad_norm": norm(grads),
            "learning_rate": jnp.asarray(plan.learning_rate(state.step)),
            **norms,
        }
        if skipped is not None:
            metrics["skipped"] = skipped
        state = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=ema,
            skipped=skipped,
        )
        return state, metrics

    return jax.jit(
        step,
        in_shardings=(shardings, dict.fromkeys(BATCH_FIELDS, split_by_example(mesh))),
        out_shardings=(shardings, everywhere),
        donate_argnums=0,
        compiler_options=compiler_options(mesh),
    )


def step_keys(seed: int, step: Array | int) -> Array:
    """The two random keys of a step, [2]: one for augmentation, one for dropout."""
    return jax.random.split(jax.random.fold_in(random_key(seed), step))


def split_rows(batch: Batch, micro_batches: int, mesh: Mesh) -> Batch:
    """Cuts [batch, …] into [micro_batches, batch / micro_batches, …] without moving an image.

    Each device cuts its own rows. If micro-batches were consecutive rows of the global batch,
    images would have to move between devices.
    """
    devices = mesh.size
    cut = NamedSharding(mesh, PartitionSpec(None, *batch_spec(mesh)))

    def split(array: Array) -> Array:
        rest = array.shape[1:]
        parts = array.reshape(devices, micro_batches, -1, *rest).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(parts.reshape(micro_batches, -1, *rest), cut)

    return jax.tree.map(split, batch)


def accumulate(compute: Callable, micro_batches: Batch) -> tuple[PyTree, tuple[PyTree, Metrics]]:
    """Runs `compute` on one micro-batch after another.

    Returns:
      The sums of gradients and metrics, and the mean of the batch statistics. Each micro-batch
      updates the same old moving statistics, and the update is linear in the statistics of the
      micro-batch, so the mean is the update by the whole batch.
    """
    count = micro_batches["labels"].shape[0]
    first = jax.tree.map(lambda parts: parts[0], micro_batches)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(compute, first)
    )

    def add(total: PyTree, micro_batch: Batch) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, compute(micro_batch)), None

    (grads, (batch_stats, sums)), _ = jax.lax.scan(add, zeros, micro_batches)
    return grads, (jax.tree.map(lambda total: total / count, batch_stats), sums)
