"""What training must reach, each in processes of its own with the compiler's own settings.

Times hold for two CPU cores that have nothing else to do.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ports import free_address

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[1]

KERAS_STEP = """
import keras, numpy as np, statistics, time
model = keras.applications.EfficientNetV2B0(weights=None, classes=1000, input_shape=(224, 224, 3))
model.compile(
    optimizer=keras.optimizers.SGD(0.01, momentum=0.9),
    loss=keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
)
images = np.random.rand(16, 224, 224, 3).astype("float32") * 255
labels = np.eye(1000, dtype="float32")[np.random.randint(0, 1000, 16)]
model.train_on_batch(images, labels)
times = []
for _ in range(5):
    start = time.perf_counter()
    float(model.train_on_batch(images, labels))
    times.append(time.perf_counter() - start)
print(16 / statistics.median(times))
"""

TPU_BYTES = """
from jax.experimental import topologies
from jaxcls.measure.benchmark import cost_per_image
from jaxcls.config import Config, DataConfig, ModelConfig
from jaxcls.distributed.mesh import make_mesh
from jaxcls.training.build import build_training
devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4").devices
config = Config(
    model=ModelConfig(name="efficientnetv2_b0"),
    data=DataConfig(batch_size=128 * len(devices), image_size=224, canvas_size=256),
    compute_dtype="bfloat16",
    num_steps=1000,
)
training = build_training(config, num_classes=1000, num_examples=10**6, mesh=make_mesh(devices))
print(cost_per_image(training, training.compile_step().program)[1])
"""


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: text for name, text in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=kept | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done


def test_digits_reach_97_percent_in_four_minutes_whatever_the_seed(tmp_path: Path) -> None:
    for seed in range(3):
        workdir, start = str(tmp_path / str(seed)), time.perf_counter()
        command = ("-m", "jaxcls", "train", "configs/digits.py", "--seed", str(seed))
        text = run(*command, "--workdir", workdir).stderr
        seconds = time.perf_counter() - start
        first = re.search(r"took the first step ([\d.]+) s", text)
        report = run("-m", "jaxcls", "evaluate", workdir, "--json").stdout.splitlines()[-1]
        top1 = json.loads(report)["top1"]
        print(f"seed {seed}: top1 {top1:.2%}, {seconds:.0f} s, {first and first[0]}")
        assert top1 >= 0.97
        assert seconds <= 240
        assert first
        assert float(first[1]) <= 25


def test_a_step_of_b0_is_2_4_times_as_fast_as_keras() -> None:
    command = "-m jaxcls benchmark configs/digits.py --synthetic --data.image-size 224"
    options = "--data.canvas-size 256 --data.batch-size 16 --seconds 8 --json"
    ours, theirs = [], []
    for _ in range(3):
        report = run(*command.split(), *options.split()).stdout.splitlines()[-1]
        ours.append(json.loads(report)["step_images_per_second"])
        theirs.append(float(run("-c", KERAS_STEP, KERAS_BACKEND="jax").stdout.split()[-1]))
    print(f"img/s: ours {ours}, Keras {theirs}")
    assert statistics.median(ours) >= 2.4 * statistics.median(theirs)


def test_b0_needs_less_memory_traffic_on_a_tpu_than_keras() -> None:
    pytest.importorskip("libtpu")
    described = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    traffic = float(run("-c", TPU_BYTES, **described, JAX_PLATFORMS="cpu").stdout.split()[-1])
    print(f"{traffic / 1e6:.1f} MB an image")
    assert traffic < 191.9e6


SCALING = """
import dataclasses, statistics, sys, time
import jax
from jaxcls.measure.benchmark import synthetic_batch
from jaxcls.distributed.job import JobOptions, join, leave
from jaxcls.config import Config, DataConfig, ModelConfig
from jaxcls.distributed.mesh import make_mesh
from jaxcls.training.build import build_training
count, process, address, batch_norm = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
if count > 1:
    join(JobOptions(coordinator=address, num_processes=count, process_id=process), stops=False)
config = Config(
    model=ModelConfig(
        name="efficientnetv2_b0", batch_norm=32 if batch_norm == "grouped" else batch_norm
    ),
    data=DataConfig(batch_size=32 * count, image_size=224, canvas_size=256),
    num_steps=1000,
)
training = build_training(config, num_classes=1000, num_examples=10**6, mesh=make_mesh())
state, batch, times = training.init(), synthetic_batch(training), []
program = training.compile_step().program
for _ in range(9):
    start = time.perf_counter()
    state, metrics = program(state, batch)
    jax.block_until_ready(metrics)
    times.append(time.perf_counter() - start)
if process == 0:
    print(statistics.median(times[2:]))
leave(0)
"""


def step_seconds(count: int, batch_norm: str) -> float:
    """The median step of as many processes, each with a core and 32 images of its own."""
    address = free_address()
    flags = {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    job = []
    for process in range(count):
        place = [str(count), str(process), address, batch_norm]
        command = ["taskset", "-c", str(process), sys.executable, "-c", SCALING, *place]
        job.append(
            subprocess.Popen(
                command, cwd=ROOT, env=os.environ | flags, stdout=subprocess.PIPE, text=True
            )
        )
    outs = [process.communicate()[0] for process in job]
    assert [process.returncode for process in job] == [0] * count
    return float(outs[0].split()[-1])  # gloo greets before


@pytest.mark.parametrize(
    "batch_norm",
    [
        "grouped",
        pytest.param(
            "global",
            marks=pytest.mark.xfail(
                reason="0.73 to 0.86: the network thread of gloo spins on the only core of a "
                "process while a message waits that it has not asked for, many times a step",
                strict=False,
            ),
        ),
    ],
)
def test_a_step_of_b0_scales_weakly_to_two_processes(batch_norm: str) -> None:
    pairs = [(step_seconds(1, batch_norm), step_seconds(2, batch_norm)) for _ in range(3)]
    shares = [one / two for one, two in pairs]
    print(f"{batch_norm}: seconds a step {pairs}, of the rate {shares}")
    assert statistics.median(shares) >= 0.85
