"""Real sets of TFDS from archives of the real ones' structure, without network and TensorFlow."""

import contextlib
import dataclasses
import gzip
import io
import json
import socket
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
import pytest
import scipy.io
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums

from jaxcls.config import Config, DataConfig, ModelConfig, OptimizerConfig, load_config
from jaxcls.data import tfds_prepare, tfds_stand_in
from jaxcls.data.batches import train_batches
from jaxcls.data.decode import decode_image
from jaxcls.data.device import device_batches
from jaxcls.data.sources import open_source, prepare_source
from jaxcls.distributed.mesh import make_mesh
from jaxcls.models.registry import SPECS
from jaxcls.system.errors import DataError
from jaxcls.training.build import Training, build_training

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
    dogs = [f"n0208{number}-Breed/n0208{number}_7.jpg" for number in range(120)]
    xml = (
        b"<annotation><size><width>24</width><height>20</height></size><object><bndbox>"
        b"<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
    )
    lists = {"train_list.mat": dogs, "test_list.mat": dogs[:2]}
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
    "caltech101": (caltech101, {"train": 89, "test": 7}),  # TFDS draws 30, here and there the "tmp"
    "tf_flowers": (tf_flowers, {"train": 20}),
    "oxford_flowers102": (oxford_flowers102, {"train": 3, "validation": 3, "test": 3}),
    "oxford_iiit_pet": (oxford_iiit_pet, {"train": 2, "test": 2}),
    "food101": (food101, {"train": 3, "validation": 3}),
    "stanford_dogs": (stanford_dogs, {"train": 120, "test": 2}),
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


def test_dogs_and_cats_keep_their_labels_and_lose_broken_files(
    by_hand: Callable[[str], Path],
) -> None:
    data_dir = by_hand("cats_vs_dogs")
    prepare_source("tfds:cats_vs_dogs", str(data_dir))
    source = open_source(DataConfig(source="tfds:cats_vs_dogs", data_dir=str(data_dir)), "train")
    assert source.class_names == ("cat", "dog")
    found = set()
    for index in range(len(source)):
        image = decode_image(source[index].image, where="it")
        number = round(image.mean() / 5)  # recoded, so a level may be lost
        np.testing.assert_allclose(image, 5 * number, atol=2)
        assert image.shape[0] == 20 + number % 7
        found.add((number, source[index].label))
    assert found == {(number, label) for number in range(12) for label in (0, 1)}


@pytest.fixture(scope="module")
def training(tiny_config: Config) -> Iterator[Training]:
    """One network of one block, for as many classes as the largest of the sets has."""
    tiny: Any = SPECS["tiny"]
    spec = dataclasses.replace(tiny, name="one_block", blocks=tiny.blocks[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SPECS, spec.name, spec)
        config = dataclasses.replace(
            tiny_config,
            model=ModelConfig(name=spec.name),
            data=DataConfig(batch_size=8, image_size=16, canvas_size=32),
            optimizer=OptimizerConfig(learning_rate=0.1),
        )
        mesh = make_mesh(jax.devices()[:1])
        yield build_training(config, num_classes=102, num_examples=80, mesh=mesh)


@pytest.mark.parametrize(
    ("file", "splits"),
    [
        ("guide/caltech101.py", ("train", "test")),
        ("guide/cats_vs_dogs.py", ("train[:90%]", "train[90%:]")),
        ("tf_flowers.py", ("train[:90%]", "train[90%:]")),
    ],
)
def test_its_config_reads_it_and_a_network_trains_a_step(
    by_hand: Callable[[str], Path],
    tmp_path: Path,
    training: Training,
    file: str,
    splits: tuple[str, str],
) -> None:
    config = load_config(ROOT / "configs" / file)
    by_hand(config.data.source.removeprefix("tfds:"))
    data = dataclasses.replace(config.data, data_dir=str(tmp_path), prepare=True, batch_size=8)
    assert (data.train_split, data.eval_split) == splits
    source, rest = (open_source(data, split) for split in splits)
    assert len(rest) > 0
    with contextlib.closing(train_batches(source, data, seed=0, rows=range(8))) as batches:
        assert next(batches)["images"].shape == (8, data.canvas_size, data.canvas_size, 3)
    with device_batches(source, data, seed=0, mesh=training.mesh) as on_device:
        state, metrics = training.steps[training.config.data.image_size](
            training.init(), next(on_device)
        )
    assert int(state.step) == 1
    assert np.isfinite(float(metrics["loss"]))


def test_a_file_by_hand_that_is_not_the_real_one(
    by_hand: Callable[[str], Path],
) -> None:
    """A download that broke off, or the page of a site that asks to log in."""
    data_dir = by_hand("tf_flowers")
    file = data_dir / "downloads" / "manual" / "flower_photos.tgz"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(DataError) as caught:
        prepare_source("tfds:tf_flowers", str(data_dir))
    message = str(caught.value)
    assert "a file is damaged or the wrong one" in message
    assert str(file) in message
    assert "Got: UrlInfo(size=500" in message


def test_which_file_is_missing_and_where_it_belongs(
    by_hand: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir = by_hand("oxford_iiit_pet")
    manual = data_dir / "downloads" / "manual"
    (manual / "annotations.tar.gz").unlink()

    def nowhere(*_: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(tfds_prepare.socket, "getaddrinfo", nowhere)
    with pytest.raises(
        DataError,
        match=r"there is no network \(thor\.robots.*download https.*/annotations.tar.gz there and "
        rf"put it here as {manual}/annotations.tar.gz",
    ):
        prepare_source("tfds:oxford_iiit_pet", str(data_dir))


def test_a_set_by_hand_says_what_is_missing(by_hand: Callable[[str], Path]) -> None:
    """Also where the folder is there and holds other sets' files."""
    data_dir = by_hand("imagenet2012")
    manual = data_dir / "downloads" / "manual"
    (manual / "ILSVRC2012_img_val.tar").unlink()
    with pytest.raises(DataError) as caught:
        prepare_source("tfds:imagenet2012", str(data_dir))
    message = str(caught.value)
    assert (
        f"downloaded by hand. [Errno 2] No such file or directory: '{manual}/ILSVRC2012_img"
        in message
    )
    assert f"Put them into {manual} (there now: ILSVRC2012_img_train.tar)" in message
    assert "two files: ILSVRC2012_img_train.tar and\nILSVRC2012_img_val.tar" in message


def test_the_default_place_is_beside_the_sets(
    by_hand: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without data.data_dir, that of TFDS."""
    data_dir = by_hand("eurosat/rgb")
    monkeypatch.setattr("jaxcls.data.tfds_folders.constants.DATA_DIR", str(data_dir))
    assert "train 4" in prepare_source("tfds:eurosat/rgb")
