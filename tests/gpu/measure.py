"""Measures a training on a GPU, part by part, beside timm with torch.compile; see README.md here.

Each part appends rows to OUT/table.md as soon as it has them, so that a part which is cut off
leaves what it measured.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
NETWORKS = {"efficientnetv2_b0": (224, 256), "efficientnetv2_s": (300, 128)}
CONFIG = "configs/imagenet/kerascv_b0.py"


class Table:
    """A table in a folder, to which each call adds a row."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, what: str, **values: str) -> None:
        row = f"| {what} | {', '.join(f'{name} {value}' for name, value in values.items())} |"
        print(row, flush=True)
        with (self.folder / "table.md").open("a") as file:
            file.write(row + "\n")


def benchmark(name: str, *, bare: bool) -> dict[str, float]:
    """Runs `jaxcls benchmark` on random images in bfloat16.

    Args:
      name: the network.
      bare: whether to leave out augmentation and moving averages.
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
        config = Path("bare.py").absolute()
        config.write_text(
            "import dataclasses, runpy\n"
            "from jaxcls.config.augment import CenterCrop\n"
            f"get = runpy.run_path({str(ROOT / CONFIG)!r})['get_config']\n"
            "def get_config():\n"
            "    return dataclasses.replace(get(), augment=(CenterCrop(),))\n"
        )
    words = [word for field, value in options.items() for word in (f"--{field}", str(value))]
    command = [sys.executable, "-m", "jaxcls", "benchmark", str(config), "--synthetic", "--json"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=True)
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


def depthwise(say: Table) -> None:
    """Each form of the depthwise convolution at the sizes of B0, forward and backward."""
    import jax
    import jax.numpy as jnp

    from jaxcls.models.depthwise import grouped, grouped_gradients, shifted, shifted_gradients

    forms = {"grouped": (grouped, grouped_gradients), "shifted": (shifted, shifted_gradients)}
    for side, channels, stride in ((28, 192, 2), (14, 384, 1), (14, 672, 1), (7, 1152, 1)):
        x = jnp.ones((256, side, side, channels), jnp.bfloat16)
        kernel = jnp.ones((3, 3, 1, channels), jnp.bfloat16)
        grad = jnp.ones((256, side // stride, side // stride, channels), jnp.bfloat16)
        for form, (forward, backward) in forms.items():
            both = jax.jit(
                lambda x, kernel, grad, forward=forward, backward=backward, stride=stride: (
                    forward(x, kernel, stride=stride),
                    backward(x, kernel, grad, stride=stride),
                )
            )
            result = jax.block_until_ready(both(x, kernel, grad))
            begin = time.perf_counter()
            for _ in range(50):
                result = both(x, kernel, grad)
            jax.block_until_ready(result)
            milliseconds = (time.perf_counter() - begin) / 50 * 1e3
            say(f"depthwise {form} {side} px, {channels} channels", step=f"{milliseconds:.3f} ms")


def profile(say: Table) -> None:
    """Three steps of B0 as a JAX profile in OUT/profile."""
    import jax

    from jaxcls.config import load_config
    from jaxcls.distributed.mesh import make_mesh
    from jaxcls.measure.benchmark import synthetic_batch
    from jaxcls.pretrained.resolve import resolve
    from jaxcls.training.build import build_training

    config = resolve(load_config(str(ROOT / CONFIG)))
    training = build_training(config, num_classes=1000, num_examples=1281167, mesh=make_mesh())
    step, state = training.compile_step().program, training.init()
    batch = synthetic_batch(training)
    state, metrics = step(state, batch)
    with jax.profiler.trace(str(say.folder / "profile")):
        for _ in range(3):
            state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
    say("profile", step="written")


PARTS = {part.__name__: part for part in (ours, timm, depthwise, profile)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path, default=Path("gpu"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    PARTS[options.part](Table(options.out))


if __name__ == "__main__":
    main()
