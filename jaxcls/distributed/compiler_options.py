"""XLA's options for the training step: the only place where jaxcls changes how XLA compiles.

Figures are of EfficientNetV2-B0 at 224 pixels on eight H200, 256 images each, in bfloat16, with
`model.batch_norm` 32, as `jaxcls compile` reports them.

For TPUs, XLA's own choices are best so far. Of the same network on four v5e, 128 images each,
without augmentation (162.6 MB an image, 39.6 of them from or to HBM, 39.2 million cycles), this was
tried:

- xla_tpu_scoped_vmem_limit_kib: with 65536 fewer bytes (154.9 MB), but more from and to HBM (60.4)
  and more cycles (41.0), because less fast memory is left to keep arrays in; with 8192 more cycles.
- xla_tpu_sliced_prefetch_max_slices 1, alone or with 24576 KiB of the above: up to 3 % fewer cycles
  on v5e (and 174.6 MB), but none fewer on v6e.
- xla_tpu_enable_experimental_fusion_cost_model: 8 % more bytes, on one block of each stage.
- dot-dot fusion, nested loop and dot fusion, aggressive loop fusion layouts, large second minor
  layouts, copy fusion, xla_tpu_msa_inefficient_use_to_copy_ratio: the same program.
"""

from jax.sharding import Mesh

from jaxcls.distributed.mesh import has_gpus

type CompilerOptions = dict[str, str | int | bool]

# For steps that sum gradients over several GPUs.
SEVERAL_GPUS: CompilerOptions = {
    # XLA would copy all gradients into one array, sum that, and copy each gradient out again. NCCL
    # sums many arrays at once as well: 1,783 -> 1,417 kernels.
    "xla_disable_hlo_passes": "all-reduce-contiguous",
    # Gradients are summed in parts of about this size: four all-reduces instead of one. XLA's own
    # choice is 30 MB.
    "xla_gpu_all_reduce_combine_threshold_bytes": 8 * 2**20,
    # Each part is summed as soon as it is known, while the device computes the gradients of the
    # layers before.
    "xla_gpu_enable_latency_hiding_scheduler": True,
}


def compiler_options(mesh: Mesh) -> CompilerOptions:
    """The options with which XLA compiles the training step for a mesh."""
    return SEVERAL_GPUS if has_gpus(mesh) and mesh.size > 1 else {}
