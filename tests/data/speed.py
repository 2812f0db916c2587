"""How fast the data pipeline is, against the parts that it is made of and against tf.data.

    python tests/data/speed.py [--tf PYTHON] [--canvas 256] [--rounds 5]

1,000 photos of about 500x375 pixels at quality 90, cut from scikit-learn's two. Each round runs all
contestants one after the other, so that a busy machine slows them alike; printed are medians, and
of each ratio the median over the rounds. "CPU" is images a second of CPU time, which other work on
the machine disturbs less than the rate. PYTHON is an interpreter that has tensorflow (2.21 was
used); without it that comparison is left out.
"""

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import jax
import numpy as np
import simplejpeg
from sklearn.datasets import load_sample_image

from jaxcls.config import DataConfig
from jaxcls.data.batches import train_batches
from jaxcls.data.device import process_rows, to_device
from jaxcls.data.images import TrainingImages
from jaxcls.data.resize import fit
from jaxcls.data.sources import open_source

NUM_PHOTOS = 1000
BATCH_SIZE = 64

TFDATA = """
import pathlib, sys, time
import tensorflow as tf
folder, canvas, batch_size, threads = sys.argv[1], *map(int, sys.argv[2:])
files = sorted(str(path) for path in pathlib.Path(folder).rglob("*.jpg"))

def load(file):
    image = tf.io.decode_jpeg(tf.io.read_file(file), channels=3)
    image = tf.image.resize(image, (canvas, canvas), preserve_aspect_ratio=True)
    image = tf.cast(tf.round(image), tf.uint8)
    size = tf.shape(image)[:2]
    return tf.image.pad_to_bounding_box(image, 0, 0, canvas, canvas), size

def load_plain(file):
    image = tf.io.decode_jpeg(tf.io.read_file(file), channels=3)
    return tf.cast(tf.round(tf.image.resize(image, (canvas, canvas))), tf.uint8)

options = tf.data.Options()
options.threading.private_threadpool_size = threads
for function in (load, load_plain):
    ds = tf.data.Dataset.from_tensor_slices(files).shuffle(len(files)).repeat()
    ds = ds.map(function, num_parallel_calls=tf.data.AUTOTUNE).batch(batch_size)
    batches = iter(ds.prefetch(tf.data.AUTOTUNE).with_options(options))
    for _ in range(4):
        next(batches)
    begin, cpu, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - begin < 4:
        next(batches)
        count += batch_size
    print(count / (time.perf_counter() - begin), count / (time.process_time() - cpu))
"""


def make_photos(folder: Path) -> None:
    """Ragged crops of the two photographs, 500 pixels wide and about 375 high."""
    generator = np.random.default_rng(0)
    for number in range(NUM_PHOTOS):
        name = ("china", "flower")[number % 2]
        photo = load_sample_image(f"{name}.jpg")
        scale = generator.uniform(0.6, 1)
        height, width = (int(side * scale) for side in photo.shape[:2])
        top, left = (
            generator.integers(0, whole - part + 1)
            for whole, part in zip(photo.shape[:2], (height, width), strict=True)
        )
        crop = photo[top : top + height, left : left + width]
        size = (500, int(generator.integers(350, 401)))
        crop = cv2.resize(crop, size, interpolation=cv2.INTER_CUBIC)
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"{number:04}.jpg").write_bytes(
            simplejpeg.encode_jpeg(crop, quality=90, colorsubsampling="420")
        )


def rate(run: Callable[[int], object], count: int) -> float:
    """Calls a second of run(0), run(1), …"""
    begin = time.perf_counter()
    for number in range(count):
        run(number)
    return count / (time.perf_counter() - begin)


def measure_decoding(data: DataConfig) -> dict[str, float]:
    """Images a second on one core: the libraries alone, and what jaxcls makes of them."""
    source = open_source(data, "train+test")
    images = TrainingImages(source, data)
    canvas = np.zeros((data.canvas_size, data.canvas_size, 3), np.uint8)
    encoded = [source[index].image for index in range(300)]

    def alone(index: int) -> None:
        fit(simplejpeg.decode_jpeg(encoded[index], colorspace="RGB"), data.canvas_size)

    def ours(index: int) -> None:
        image, _ = images[index]
        canvas[: image.shape[0], : image.shape[1]] = image

    return {
        "decode alone": rate(lambda i: simplejpeg.decode_jpeg(encoded[i], colorspace="RGB"), 300),
        "decode + resize alone": rate(alone, 300),
        "file to canvas": rate(ours, 300),
    }


def measure_batches(data: DataConfig) -> dict[str, float]:
    """Images in batches on the device: a second with all cores, and a second of CPU time."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    source = open_source(data, "train+test")
    rows = process_rows(sharding, data.batch_size)
    with to_device(
        train_batches(source, data, seed=0, rows=rows), sharding, depth=data.prefetch
    ) as batches:
        for batch in itertools.islice(batches, 4):
            jax.block_until_ready(batch)
        begin, cpu, count = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - begin < 4:
            jax.block_until_ready(next(batches))
            count += data.batch_size
        return {
            "device batches": count / (time.perf_counter() - begin),
            "device batches, CPU": count / (time.process_time() - cpu),
        }


def measure_tfdata(python: str, folder: Path, canvas: int, threads: int) -> dict[str, float]:
    arguments = [str(folder), str(canvas), str(BATCH_SIZE), str(threads)]
    run = subprocess.run(
        [python, "-c", TFDATA, *arguments], check=True, capture_output=True, text=True
    )
    names = ("tf.data", "tf.data, CPU", "tf.data to a square", "tf.data to a square, CPU")
    return dict(zip(names, map(float, run.stdout.split()), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tf", metavar="PYTHON", help="an interpreter that has tensorflow")
    parser.add_argument("--canvas", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    rounds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        make_photos(Path(name))
        data = DataConfig(
            source=f"folder:{name}",
            batch_size=BATCH_SIZE,
            canvas_size=options.canvas,
            num_threads=options.threads,
            num_workers=options.workers,
        )
        for _ in range(options.rounds):
            found = measure_decoding(data) | measure_batches(data)
            if options.tf:
                found |= measure_tfdata(options.tf, Path(name), options.canvas, options.threads)
            rounds.append(found)
    for part in rounds[0]:
        print(f"{part:32} {statistics.median(r[part] for r in rounds):7.0f} img/s")
    pairs = [("file to canvas", "decode + resize alone")]
    pairs += [
        ("device batches" + ", CPU" * part.endswith("CPU"), part)
        for part in rounds[0]
        if part.startswith("tf.data")
    ]
    for ours, theirs in pairs:
        ratio = statistics.median(r[ours] / r[theirs] for r in rounds)
        print(f"{ours} / {theirs}: {ratio:.2f}")


if __name__ == "__main__":
    sys.exit(main())
