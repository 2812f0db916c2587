"""What the TPU's own compiler makes of the guide's augmentation; needs the extra tpu-compiler."""

import json
import os
import subprocess
import sys

import pytest

PER_CHIP, CANVAS, SIZE, CLASSES = 128, 256, 224, 1000
# 6 % of the 178.2 MB that a B0 step moves without augmentation, and the stem convolution's 1.72 MB.
MEGABYTES_AN_IMAGE = 0.06 * 178.2 + 1.72

# The stem's convolution belongs to it: what it reads is how the images leave the augmentation.
PROGRAM = f"""
import json, re
import jax, jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec
from jaxcls.augment.pipeline import make_augment
from jaxcls.config.augment import Mix, RandAugment, RandomCropAndResize, RandomFlip
from jaxcls.distributed.mesh import make_mesh

topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
mesh = make_mesh(topology.devices)
guide = (RandomFlip(), RandomCropAndResize(), RandAugment(magnitude=0.3), Mix())
augment = make_augment(guide, image_size={SIZE}, crop_fraction=1.0, mesh=mesh)

def stem(key, progress, canvases, sizes, labels, positions, kernel):
    images, labels = augment(key, progress, canvases, sizes, labels, positions)
    images = ((images - 0.45) / 0.225).astype(jnp.bfloat16)
    return jax.lax.conv_general_dilated(
        images, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ), labels

def array(shape, dtype, *axes):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

batch = {PER_CHIP} * mesh.size
key = jax.eval_shape(lambda: jax.random.key(0))
compiled = jax.jit(stem).lower(
    array(key.shape, key.dtype),
    array((), jnp.float32),
    array((batch, {CANVAS}, {CANVAS}, 3), jnp.uint8, "data"),
    array((batch, 2), jnp.int32, "data"),
    array((batch, {CLASSES}), jnp.float32, "data"),
    array((batch,), jnp.int32, "data"),
    array((3, 3, 3, 32), jnp.bfloat16),
).compile()
text = compiled.as_text()
print(json.dumps(dict(
    bytes=compiled.cost_analysis()["bytes accessed"],
    flops=compiled.cost_analysis()["flops"],
    operations=sorted(set(re.findall(r"[ )]([a-z][a-z-]+)[(]", text))),
)))
"""


@pytest.mark.slow
def test_the_guides_pipeline_suits_a_tpu() -> None:
    pytest.importorskip("libtpu")
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    operations = set(found["operations"])
    assert {"convolution", "fusion"} <= operations  # the text is what it is taken for
    assert not {name for name in operations if name.startswith(("all-", "collective-"))}
    assert not operations & {"gather", "scatter", "reduce-scatter"}
    assert found["bytes"] / PER_CHIP / 1e6 < MEGABYTES_AN_IMAGE
