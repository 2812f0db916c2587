"""Real sets of TFDS from archives of the real ones' structure, without network and TensorFlow."""

import dataclasses
import gzip
import io
import json
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
import pytest
import scipy.io
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums

from jaxcls.config import Config, DataConfig, load_config
from jaxcls.data import tfds_prepare, tfds_stand_in
from jaxcls.data.batches import train_batches
from jaxcls.data.decode import decode_image
from jaxcls.data.sources import open_source, prepare_source
from jaxcls.errors import DataError
from jaxcls.parallel import make_mesh
from jaxcls.training.loop import train

ROOT = Path(__file__).parents[2]

type Files = dict[str, bytes]


def jpeg(number: int) -> bytes:
    """A photo of its own size and grey, with the JFIF header that cameras' files lack."""
    image = np.full((20 + number % 7, 24, 3), 5 * number % 256, np.uint8)
    return cv2.imencode(".jpg", image)[1].tobytes()


def photos(folders: dict[str, int], *, suffix: str = ".jpg", name: str = "{:d}") -> Files:
    return {
        f"{folder}/{name.format(number)}{suffix}": jpeg(number)
        for folder, count in folders.items()
        for number in range(count)
    }


def zipped(files: Files) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(files: Files, *, mode: Any = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def matlab(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, arrays)
    return buffer.getvalue()


def cats_vs_dogs(monkeypatch: pytest.MonkeyPatch) -> Files:
    """Of its 1,738 files without a JFIF header, three."""
    module = sys.modules[tfds.builder_cls("cats_vs_dogs").__module__]
    monkeypatch.setattr(module, "_NUM_CORRUPT_IMAGES", 3)
    files = photos({"PetImages/Cat": 12, "PetImages/Dog": 12})
    whole = files["PetImages/Cat/0.jpg"]
    files["PetImages/Cat/666.jpg"] = b""
    files["PetImages/Dog/11702.jpg"] = b"BM" + bytes(60)
    files["PetImages/Dog/1773.jpg"] = whole.replace(b"JFIF", b"Exif")
    files |= {"PetImages/Cat/Thumbs.db": bytes(9), "readme[1].txt": b"MSR-LA", "PetImages/": b""}
    return {"kagglecatsanddogs_5340.zip": zipped(files)}


def caltech101(monkeypatch: pytest.MonkeyPatch) -> Files:
    """At least 30 photos a class, for TFDS trains on 30 of them; a tar file in a zip file."""
    folders = ("accordion", "BACKGROUND_Google", "Faces_easy")
    inner = photos(
        {f"101_ObjectCategories/{folder}": 32 for folder in folders}, name="image_{:04d}"
    )
    inner["101_ObjectCategories/BACKGROUND_Google/tmp"] = b"no photo"
    files = {
        "caltech-101/101_ObjectCategories.tar.gz": tarred(inner),
        "caltech-101/Annotations.tar": tarred({}, mode="w"),
        "__MACOSX/caltech-101/._101_ObjectCategories.tar.gz": b"resource fork",
    }
    return {"caltech-101.zip": zipped(files)}


def tf_flowers(monkeypatch: pytest.MonkeyPatch) -> Files:
    kinds = ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    files = photos({f"flower_photos/{kind}": 4 for kind in kinds})
    return {"flower_photos.tgz": tarred(files | {"flower_photos/LICENSE.txt": b"CC"})}


def oxford_flowers102(monkeypatch: pytest.MonkeyPatch) -> Files:
    numbers = np.arange(1, 10)
    return {
        "102flowers.tgz": tarred(
            {f"jpg/image_{number:05d}.jpg": jpeg(number) for number in numbers.tolist()}
        ),
        "imagelabels.mat": matlab(labels=numbers),
        "setid.mat": matlab(trnid=numbers[:3], valid=numbers[3:6], tstid=numbers[6:]),
    }


def oxford_iiit_pet(monkeypatch: pytest.MonkeyPatch) -> Files:
    names = [f"Abyssinian_{number}" for number in range(100, 104)]
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    size = "<size><width>24</width><height>20</height></size>"
    mask = cv2.imencode(".png", np.ones((20, 24), np.uint8))[1].tobytes()
    lists = {"trainval": names[:2], "test": names[2:]}
    return {
        "images.tar.gz": tarred({f"images/{name}.jpg": jpeg(0) for name in names}),
        "annotations.tar.gz": tarred(
            {
                **{
                    f"annotations/{part}.txt": "".join(f"{n} 1 1 1\n" for n in some).encode()
                    for part, some in lists.items()
                },
                **{f"annotations/trimaps/{name}.png": mask for name in names},
                **{
                    f"annotations/xmls/{name}.xml": (
                        f"<annotation>{size}<object>{box}</object></annotation>".encode()
                    )
                    for name in names
                },
            }
        ),
    }


def food101(monkeypatch: pytest.MonkeyPatch) -> Files:
    chosen = {"apple_pie": ["apple_pie/0", "apple_pie/1"], "waffles": ["waffles/0"]}
    files = photos({"food-101/images/apple_pie": 2, "food-101/images/waffles": 1})
    files |= {
        f"food-101/meta/{part}.json": json.dumps(chosen).encode() for part in ("train", "test")
    }
    return {"food-101.tar.gz": tarred(files)}


def stanford_dogs(monkeypatch: pytest.MonkeyPatch) -> Files:
    dogs = [f"n02085620-Chihuahua/n02085620_{number}.jpg" for number in range(4)]
    xml = (
        "<annotation><size><width>24</width><height>20</height></size><object><bndbox>"
        "<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
    ).encode()
    lists = {"train_list.mat": dogs[:2], "test_list.mat": dogs[2:]}
    annotations = {f"Annotation/{dog.removesuffix('.jpg')}": xml for dog in dogs}
    return {
        "images.tar": tarred({f"Images/{dog}": jpeg(0) for dog in dogs}, mode="w"),
        "annotation.tar": tarred(annotations, mode="w"),
        "lists.tar": tarred(
            {name: matlab(file_list=np.array(some, object)) for name, some in lists.items()},
            mode="w",
        ),
    }


def cifar10(monkeypatch: pytest.MonkeyPatch) -> Files:
    folder = "cifar-10-batches-bin"
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    pixels = np.arange(3072, dtype=np.uint32).astype(np.uint8).tobytes()
    files = {f"{folder}/{name}": bytes([3]) + pixels for name in names}
    files[f"{folder}/batches.meta.txt"] = "\n".join(f"kind{i}" for i in range(10)).encode()
    return {"cifar-10-binary.tar.gz": tarred(files)}


def mnist(monkeypatch: pytest.MonkeyPatch) -> Files:
    module = sys.modules[tfds.builder_cls("mnist").__module__]
    files: Files = {}
    for prefix, constant in (("train", "_TRAIN_EXAMPLES"), ("t10k", "_TEST_EXAMPLES")):
        monkeypatch.setattr(module, constant, 3)
        images = struct.pack(">4i", 2051, 3, 28, 28) + bytes(3 * 28 * 28)
        labels = struct.pack(">2i", 2049, 3) + bytes([1, 2, 3])
        files[f"{prefix}-images-idx3-ubyte.gz"] = gzip.compress(images)
        files[f"{prefix}-labels-idx1-ubyte.gz"] = gzip.compress(labels)
    return files


def eurosat(monkeypatch: pytest.MonkeyPatch) -> Files:
    files = photos({"2750/Forest": 2}, name="Forest_{:d}")
    files |= photos({"2750/River": 2}, name="River_{:d}")
    return {"EuroSAT.zip": zipped(files)}


def imagenette(monkeypatch: pytest.MonkeyPatch) -> Files:
    folders = {f"imagenette2-160/{part}/n01440764": 2 for part in ("train", "val")}
    return {"imagenette2-160.tgz": tarred(photos(folders, suffix=".JPEG"))}


def imagenet2012(monkeypatch: pytest.MonkeyPatch) -> Files:
    """Its files come by hand alone. One of each kind of image that TFDS mends is among them."""
    png = cv2.imencode(".png", np.full((5, 6, 3), 90, np.uint8))[1].tobytes()
    images = {"n02105855_1.JPEG": jpeg(1), "n02105855_2933.JPEG": png}
    validation = {f"ILSVRC2012_val_0000000{number}.JPEG": jpeg(number) for number in (1, 2)}
    return {
        "ILSVRC2012_img_train.tar": tarred({"n02105855.tar": tarred(images, mode="w")}, mode="w"),
        "ILSVRC2012_img_val.tar": tarred(validation, mode="w"),
    }


# Each set's files, and what its splits must hold.
SETS: dict[str, tuple[Callable[[pytest.MonkeyPatch], Files], dict[str, int]]] = {
    "cats_vs_dogs": (cats_vs_dogs, {"train": 24}),
    "caltech101": (caltech101, {"train": 90, "test": 6}),
    "tf_flowers": (tf_flowers, {"train": 20}),
    "oxford_flowers102": (oxford_flowers102, {"train": 3, "validation": 3, "test": 3}),
    "oxford_iiit_pet": (oxford_iiit_pet, {"train": 2, "test": 2}),
    "food101": (food101, {"train": 3, "validation": 3}),
    "stanford_dogs": (stanford_dogs, {"train": 2, "test": 2}),
    "cifar10": (cifar10, {"train": 5, "test": 1}),
    "mnist": (mnist, {"train": 3, "test": 3}),
    "eurosat/rgb": (eurosat, {"train": 4}),
    "imagenette/160px-v2": (imagenette, {"train": 2, "validation": 2}),
    "imagenet2012": (imagenet2012, {"train": 2, "validation": 2}),
}


@pytest.fixture
def by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a set's files where TFDS looks for what was fetched by hand: name -> data_dir."""
    monkeypatch.setattr(tfds_stand_in, "_is_tensorflow_there", lambda: False)
    monkeypatch.setattr(tfds_prepare.urllib.request, "getproxies", dict)
    monkeypatch.setattr(
        tfds_prepare.socket, "getaddrinfo", lambda *_: pytest.fail("asks for the network")
    )

    def put(name: str) -> Path:
        files = SETS[name][0](monkeypatch)
        manual = tmp_path / "downloads" / "manual"
        manual.mkdir(parents=True)
        for file, content in files.items():
            (manual / file).write_bytes(content)
        builder = tfds.builder_cls(name.partition("/")[0])
        known = builder.url_infos or {}
        # TFDS checks what it reads against the real files' sums, and these are not the real ones.
        ours = {
            url: checksums.compute_url_info(manual / str(info.filename))
            if info.filename in files
            else info
            for url, info in known.items()
        }
        monkeypatch.setattr(builder, "url_infos", ours)
        return tmp_path

    return put


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_prepared_from_files_that_were_fetched_by_hand(
    by_hand: Callable[[str], Path], name: str
) -> None:
    data_dir = by_hand(name)
    said = prepare_source(f"tfds:{name}", str(data_dir))
    for split, count in SETS[name][1].items():
        assert f"{split} {count}" in said
        source = open_source(DataConfig(source=f"tfds:{name}", data_dir=str(data_dir)), split)
        for index in range(count):
            record = source[index]
            assert decode_image(record.image, where="it").shape[2] == 3
