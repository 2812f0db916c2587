"""Measures a training on a GPU, part by part, beside timm with torch.compile; see README.md here.

Each part appends rows to OUT/table.md as soon as it has them, so that a part which is cut off
leaves what it measured.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NETWORKS = {"efficientnetv2_b0": (224, 256), "efficientnetv2_s": (300, 128)}
CONFIG = "configs/imagenet/kerascv_b0.py"
# Depthwise convolutions of B0 at 224 px and S at 300 px: batch, image size, channels and stride.
DEPTHWISE = (
    (256, 28, 192, 2),
    (256, 14, 384, 1),
    (256, 14, 576, 1),
    (256, 14, 672, 1),
    (256, 14, 672, 2),
    (256, 7, 1152, 1),
    (128, 38, 256, 2),
    (128, 19, 512, 1),
    (128, 19, 768, 1),
    (128, 19, 960, 1),
    (128, 19, 960, 2),
    (128, 10, 1536, 1),
)
XLA_OPTIONS = (
    "",
    "--xla_gpu_enable_command_buffer=",
    "--xla_gpu_triton_gemm_any=true",
    "--xla_allow_excess_precision=false",
    "--xla_gpu_autotune_level=0",
)
SECONDS_OF_OPTIONS = 450  # of the part `options`
SECONDS_OF_OPTION = 150


class Table:
    """A table in a folder, to which each call adds a row."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, what: str, **values: str) -> None:
        row = f"| {what} | {', '.join(f'{name} {value}' for name, value in values.items())} |"
        print(row, flush=True)
        with (self.folder / "table.md").open("a") as file:
            file.write(row + "\n")


def benchmark(
    name: str, *, bare: bool, xla_flags: str = "", timeout: float | None = None
) -> dict[str, float]:
    """Runs `jaxcls benchmark` on random images in bfloat16.

    Args:
      name: the network.
      bare: whether to leave out augmentation and moving averages.
      xla_flags: options of XLA, beside those in the environment.
      timeout: the seconds after which to end it.

    Raises:
      subprocess.SubprocessError: it failed, or took longer.
    """
    size, batch = NETWORKS[name]
    options = {
        "model.name": name,
        "compute-dtype": "bfloat16",
        "data.image-size": size,
        "data.canvas-size": size if bare else 2 * size,
        "data.batch-size": batch,
    }
    config = ROOT / CONFIG
    if bare:
        options |= {"data.crop-fraction": 1.0, "optimizer.ema-decay": 0.0}
        config = Path(tempfile.gettempdir()) / "bare.py"
        config.write_text(
            "import dataclasses, runpy\n"
            "from jaxcls.config.augment import CenterCrop\n"
            f"get = runpy.run_path({str(ROOT / CONFIG)!r})['get_config']\n"
            "def get_config():\n"
            "    return dataclasses.replace(get(), augment=(CenterCrop(),))\n"
        )
    words = [word for field, value in options.items() for word in (f"--{field}", str(value))]
    command = [sys.executable, "-m", "jaxcls", "benchmark", str(config), "--synthetic", "--json"]
    done = subprocess.run(
        [*command, *words],
        capture_output=True,
        text=True,
        check=True,
        timeout=timeout,
        env=os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {xla_flags}"},
    )
    return json.loads(done.stdout.splitlines()[-1])


def ours(say: Table) -> None:
    """The step with and without augmentation; the second start has its programs in the cache."""
    for name in NETWORKS:
        for bare in (True, False):
            for start in ("first", "cached") if name == "efficientnetv2_b0" else ("first",):
                begin = time.perf_counter()
                found = benchmark(name, bare=bare)
                say(
                    f"jaxcls {name} {'bare' if bare else 'augmented'}, {start} start",
                    step=f"{found['step_images_per_second']:,.0f} img/s",
                    augment=f"{found['augment_images_per_second']:,.0f} img/s",
                    bytes=f"{found['bytes_per_image'] / 1e6:.1f} MB",
                    compile=f"{found['compile_seconds']:.1f} s",
                    whole=f"{time.perf_counter() - begin:.0f} s",
                )


def timm(say: Table) -> None:
    """The same networks of timm with torch.compile, in bfloat16, channels last."""
    import timm as library  # pyright: ignore[reportMissingImports]
    import torch  # pyright: ignore[reportMissingImports]

    for name, (size, batch) in NETWORKS.items():
        network = library.create_model(
            f"tf_{name}", num_classes=1000, drop_rate=0.2, drop_path_rate=0.2
        )
        network = network.cuda().train().to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
        criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
        images = torch.randn(batch, 3, size, size, device="cuda")
        images = images.to(memory_format=torch.channels_last)
        labels = torch.randint(0, 1000, (batch,), device="cuda")

        @torch.compile
        def loss_of(network, images, labels, criterion=criterion):
            with torch.autocast("cuda", torch.bfloat16):
                return criterion(network(images), labels)

        def step(network=network, images=images, labels=labels, optimizer=optimizer, of=loss_of):
            optimizer.zero_grad(set_to_none=True)
            of(network, images, labels).backward()
            optimizer.step()

        for _ in range(5):
            step()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(30):
            step()
        torch.cuda.synchronize()
        rate = 30 * batch / (time.perf_counter() - begin)
        say(f"timm {name}, torch.compile", step=f"{rate:,.0f} img/s")


def options(say: Table) -> None:
    """The step of B0 without augmentation, with some options of XLA.

    What is cut off can be measured by a second call, which has the finished programs in the cache.
    """
    end = time.monotonic() + SECONDS_OF_OPTIONS
    for flags in XLA_OPTIONS:
        timeout = max(0, min(SECONDS_OF_OPTION, end - time.monotonic()))
        try:
            found = benchmark("efficientnetv2_b0", bare=True, xla_flags=flags, timeout=timeout)
            values = {
                "step": f"{found['step_images_per_second']:,.0f} img/s",
                "compile": f"{found['compile_seconds']:.1f} s",
            }
        except subprocess.TimeoutExpired:
            values = {"step": "cut off"}
        except subprocess.CalledProcessError as error:
            values = {"failed": " ".join(error.stderr.split())[-200:]}
        say(f"jaxcls efficientnetv2_b0 bare, {flags or 'XLA as it is'}", **values)


def depthwise(say: Table) -> None:
    """Each form of the depthwise convolution at the sizes of B0 and S, forward and backward."""
    import jax.numpy as jnp
    from depthwise_kernel import by_kernel, gradients_by_kernel

    from jaxcls.models.depthwise import grouped, grouped_gradients, shifted, shifted_gradients

    forms = {
        "grouped": (grouped, grouped_gradients),
        "shifted": (shifted, shifted_gradients),
        "kernel": (by_kernel, gradients_by_kernel),
    }
    for batch, side, channels, stride in DEPTHWISE:
        x = jnp.ones((batch, side, side, channels), jnp.bfloat16)
        kernel = jnp.ones((3, 3, 1, channels), jnp.bfloat16)
        out = -(-side // stride)
        grad = jnp.ones((batch, out, out, channels), jnp.bfloat16)
        for form, (forward, backward) in forms.items():
            try:
                values = {
                    "forward": f"{_milliseconds(forward, x, kernel, stride=stride):.3f} ms",
                    "backward": f"{_milliseconds(backward, x, kernel, grad, stride=stride):.3f} ms",
                }
            except Exception as error:  # the other forms and sizes are measured all the same
                values = {"failed": " ".join(str(error).split())[:200]}
            say(
                f"depthwise {form}, {batch} x {side} px, {channels} channels, stride {stride}",
                **values,
            )


def _milliseconds(
    function: Callable[..., Any], *operands: Any, stride: int, copies: int = 4, calls: int = 25
) -> float:
    """Measures a call, with several in a program, on different arrays.

    So the time to start a program does not count, and its operands are not in the GPU's cache.
    """
    import jax
    import jax.numpy as jnp

    @jax.jit
    def program(batches: list[Any]) -> list[Any]:
        return [function(*batch, stride=stride) for batch in batches]

    batches = [[jnp.array(of) for of in operands] for _ in range(copies)]
    jax.block_until_ready(program(batches))
    begin, result = time.perf_counter(), None
    for _ in range(calls):
        result = program(batches)
    jax.block_until_ready(result)
    return (time.perf_counter() - begin) / (calls * copies) * 1e3


def profile(say: Table) -> None:
    """Three steps of B0 as a JAX profile in OUT/profile."""
    import jax

    from jaxcls.config import load_config
    from jaxcls.distributed.mesh import make_mesh
    from jaxcls.measure.benchmark import synthetic_batch
    from jaxcls.pretrained.resolve import resolve
    from jaxcls.training.build import build_training

    size, batch = NETWORKS["efficientnetv2_b0"]
    config = load_config(ROOT / CONFIG)
    data = dataclasses.replace(config.data, image_size=size, batch_size=batch)
    config = resolve(dataclasses.replace(config, data=data, compute_dtype="bfloat16"))
    training = build_training(config, num_classes=1000, num_examples=1281167, mesh=make_mesh())
    step, state = training.compile_step().program, training.init()
    images = synthetic_batch(training)
    state, metrics = step(state, images)
    with jax.profiler.trace(str(say.folder / "profile")):
        for _ in range(3):
            state, metrics = step(state, images)
        jax.block_until_ready(metrics)
    say("profile", step="written")


PARTS = {part.__name__: part for part in (ours, timm, options, depthwise, profile)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path, default=Path("gpu"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    PARTS[arguments.part](Table(arguments.out))


if __name__ == "__main__":
    main()
