import dataclasses
import itertools
import logging
import multiprocessing
import os
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from jaxcls.config import DataConfig
from jaxcls.data import batches as making
from jaxcls.data.batches import eval_batches, train_batches
from jaxcls.data.images import EvaluationImages, TrainingImages
from jaxcls.data.source import Record, Source
from jaxcls.data.sources import open_source
from jaxcls.system.errors import BrokenImageError, DataError


def take(number, iterator):
    try:
        return list(itertools.islice(iterator, number))
    finally:
        iterator.close()


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


def select(batch, rows):
    return {name: array[rows] for name, array in batch.items()}


def config(**fields):
    return DataConfig(**{"batch_size": 16, "canvas_size": 6, "image_size": 4, **fields})


def test_smaller_than_a_batch(numbered):
    with pytest.raises(DataError, match=r"data.batch_size"):
        train_batches(numbered(size=15), config(), seed=0, rows=range(16))
    (batch,) = take(
        1, train_batches(numbered(size=5), config(last_batch="straddle"), seed=0, rows=range(16))
    )
    assert sorted(np.bincount(batch["index"])) == [3, 3, 3, 3, 4]


def test_training_batch(numbered):
    data = config(batch_size=8)
    for batch in take(3, train_batches(numbered(), data, seed=3, rows=range(8))):
        assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
            "images": ((8, 6, 6, 3), "uint8"),
            "sizes": ((8, 2), "int32"),
            "labels": ((8,), "int32"),
            "index": ((8,), "int32"),
            "broken": ((8,), "bool"),
        }
        np.testing.assert_array_equal(batch["labels"], batch["index"] % 10)
        assert (batch["sizes"] == 4).all()
        assert (batch["images"][:, :4, :4] == batch["index"][:, None, None, None]).all()
        assert not batch["images"][:, 4:].any()
        assert not batch["images"][:, :, 4:].any()


@pytest.mark.parametrize("last_batch", ["drop", "straddle"])
def test_start_threads_and_rows_change_nothing(numbered, last_batch):
    source, data = numbered(size=101), config(last_batch=last_batch)
    whole = take(20, train_batches(source, data, seed=5, rows=range(16)))
    for start in (1, 6, 13):
        rest = train_batches(source, data, seed=5, rows=range(16), start=start)
        assert_same(take(20 - start, rest), whole[start:])
    for num_threads, prefetch in ((1, 1), (7, 3)):
        other = dataclasses.replace(data, num_threads=num_threads, prefetch=prefetch)
        assert_same(take(20, train_batches(source, other, seed=5, rows=range(16))), whole)
    for rows in (range(8), range(8, 16), np.array([3, 1, 15]), np.arange(0, 16, 2)):
        part = take(20, train_batches(source, data, seed=5, rows=rows))
        assert_same(part, [select(batch, np.asarray(rows)) for batch in whole])


def test_worker_processes_change_nothing(digits, digits_config):
    """And what goes wrong in a worker is raised here, in its turn, as it is."""
    expected = take(4, train_batches(digits, digits_config, seed=1, rows=range(32), start=3))
    labels = np.stack([batch["labels"] for batch in expected])
    rows = np.flatnonzero((labels[:3] != 9).all(axis=0))
    assert (labels[3, rows] == 9).any()
    without_nine = dataclasses.replace(digits, class_names=digits.class_names[:9])
    data = dataclasses.replace(digits_config, num_workers=2, num_threads=1)
    batches = train_batches(without_nine, data, seed=1, rows=rows, start=3)
    assert_same(itertools.islice(batches, 3), [select(batch, rows) for batch in expected[:3]])
    with pytest.raises(DataError, match=r"record \d+ of digits 'train': label 9 is not one of"):
        next(batches)
    assert not multiprocessing.active_children()


def test_a_worker_that_is_killed_is_replaced_and_changes_nothing(digits, digits_config, caplog):
    expected = take(20, train_batches(digits, digits_config, seed=1, rows=range(32)))
    data = dataclasses.replace(digits_config, num_workers=2, num_threads=1, prefetch=1)
    batches = train_batches(digits, data, seed=1, rows=range(32))
    found = [next(batches)]
    for worker in multiprocessing.active_children():
        worker.kill()
        worker.join()
    assert_same([*found, *take(19, batches)], expected)  # more than may have been made before
    assert "ended with exit code -9" in caplog.text
    assert not multiprocessing.active_children()


@dataclasses.dataclass(frozen=True)
class DeadlySource(Source):
    """Its images end the process that reads them, as a lack of memory does."""

    name: str = "deadly"
    split: str = "train"
    class_names: tuple[str, ...] = ("a", "b")

    def __len__(self):
        return 100

    def __getitem__(self, index):
        assert multiprocessing.parent_process(), "this is no worker"
        os._exit(9)


@pytest.mark.long
def test_workers_that_are_killed_again_and_again_are_an_error(caplog):
    data = config(num_workers=1, num_threads=1)
    with pytest.raises(DataError, match=r"data.num_workers: .* ended 4 times in a row with exit"):
        next(train_batches(DeadlySource(), data, seed=1, rows=range(16)))
    assert caplog.text.count("new workers go on") == 3


@pytest.mark.parametrize(("size", "batch_size"), [(100, 16), (96, 16), (5, 16), (1, 1), (17, 16)])
@pytest.mark.parametrize("num_processes", [1, 2])
def test_evaluation_sees_every_example_once(numbered, size, batch_size, num_processes):
    source, data = numbered(size=size), config()
    parts = [
        list(eval_batches(source, data, batch_size=batch_size, rows=rows))
        for rows in np.array_split(np.arange(batch_size), num_processes)
    ]
    assert {len(part) for part in parts} == {-(-size // batch_size)}
    seen = []
    for batch in itertools.chain(*parts):
        mask = batch["mask"]
        assert batch["images"].shape[1:] == (4, 4, 3)
        assert (batch["index"][~mask] == -1).all()
        assert not batch["images"][~mask].any()
        assert (batch["images"] == np.where(mask, batch["index"], 0)[:, None, None, None]).all()
        assert (batch["labels"] == np.where(mask, batch["index"] % 10, 0)).all()
        assert batch["images"].dtype == np.uint8
        assert batch["labels"].dtype == batch["index"].dtype == np.int32
        assert mask.dtype == bool
        seen += batch["index"][mask].tolist()
    assert sorted(seen) == list(range(size))


EVALUATE = """
import sys
from jaxcls.config import DataConfig
from jaxcls.data.batches import eval_batches
from jaxcls.data.sources import open_source

if __name__ == "__main__":
    data = DataConfig(data_dir=sys.argv[1], image_size=16, num_workers=2)
    source = open_source(data, "test")
    batches = eval_batches(source, data, batch_size=32, rows=range(32))
    print(sum(batch["mask"].sum() for batch in batches))
"""


def test_evaluation_in_workers_leaves_nothing_in_shared_memory(digits, digits_dir, tmp_path):
    """Python would complain of it on stderr when the process ends."""
    (tmp_path / "evaluate.py").write_text(EVALUATE)
    command = [sys.executable, str(tmp_path / "evaluate.py"), str(digits_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "355\n", "")


def test_repeated_examples_fill_their_rows(numbered):
    data = config(repeats=4)
    for batch in take(3, train_batches(numbered(), data, seed=0, rows=range(2, 16))):
        assert (batch["images"][:, 0, 0, 0] == batch["index"]).all()
        np.testing.assert_array_equal(batch["labels"], batch["index"] % 10)
        assert (batch["index"][4:] == batch["index"][:-4]).all()


@pytest.mark.parametrize("cache_gib", [1.0, 1e-9])
def test_a_cache_changes_nothing_and_spares_reading_if_all_fits(numbered, cache_gib):
    reads = []

    class Counting(numbered):
        def __getitem__(self, index):
            reads.append(index)
            return super().__getitem__(index)

    data = config(num_threads=1)
    expected = take(20, train_batches(numbered(), data, seed=0, rows=range(16)))
    caching = dataclasses.replace(data, cache_gib=cache_gib)
    assert_same(take(20, train_batches(Counting(), caching, seed=0, rows=range(16))), expected)
    assert (len(reads) == len(set(reads)) <= 100) == (cache_gib == 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaggedSource(Source):
    """Another source, whose record i has class c where bit c of i is set; so record 0 has none."""

    source: Source
    split: str = "train"
    name: str = "tagged"
    class_names: tuple[str, ...] = ("a", "b", "c", "d", "e")
    multi_label: bool = True
    lost: tuple[int, ...] = ()

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        image = b"" if index in self.lost else self.source[index].image
        return Record(image, tuple(c for c in range(5) if index >> c & 1))


def tags(records):
    """The labels that records of a `TaggedSource` must have in a batch."""
    return (np.asarray(records)[:, None] >> np.arange(5) & 1).astype(np.uint8)


@pytest.mark.parametrize("fields", [{}, {"repeats": 4}, {"cache_gib": 1.0}, {"batch_size": 12}])
def test_several_labels_are_multi_hot(numbered, fields):
    source, data = TaggedSource(source=numbered(size=60)), config(**fields)
    size = data.batch_size
    whole = take(12, train_batches(source, data, seed=2, rows=range(size)))
    plain = take(12, train_batches(source.source, data, seed=2, rows=range(size)))
    for batch, other in zip(whole, plain, strict=True):
        assert batch["labels"].dtype == np.uint8
        np.testing.assert_array_equal(batch["labels"], tags(batch["index"]))
        np.testing.assert_array_equal(batch["index"], other["index"])
    assert not np.concatenate([batch["labels"] for batch in whole]).all()
    for start, rows in ((5, range(size)), (0, np.array([3, 1, 11]))):
        part = train_batches(source, data, seed=2, rows=rows, start=start)
        assert_same(take(12 - start, part), [select(b, np.asarray(rows)) for b in whole[start:]])


def test_several_labels_in_worker_processes_and_evaluation(digits, digits_config, caplog):
    source = TaggedSource(source=digits, lost=(3, 4))
    data = dataclasses.replace(digits_config, broken="skip", num_threads=1)
    workers = dataclasses.replace(data, num_workers=1)
    rows = range(32)
    assert_same(
        take(3, train_batches(source, workers, seed=1, rows=rows)),
        take(3, train_batches(source, data, seed=1, rows=rows)),
    )
    first = next(batches := eval_batches(source, data, batch_size=32, rows=rows))
    batches.close()
    assert np.flatnonzero(first["broken"]).tolist() == [3, 4]
    expected = tags(first["index"]) * first["mask"][:, None]
    np.testing.assert_array_equal(first["labels"], expected)
    assert_same(take(1, eval_batches(source, workers, batch_size=32, rows=rows)), [first])
    *_, last = eval_batches(source, data, batch_size=1024, rows=range(1024))
    assert (last["index"] == -1).sum() == 2048 - 1442
    np.testing.assert_array_equal(last["labels"], tags(last["index"]) * last["mask"][:, None])


def test_the_image_that_replaces_a_broken_one_brings_its_labels(numbered, caplog):
    source = TaggedSource(source=numbered(size=32), lost=(7, 8, 31))
    data = config(broken="skip", max_broken=0.1)
    for batch in take(4, train_batches(source, data, seed=0, rows=range(16))):
        shown = [{7: 9, 8: 9, 31: 0}.get(i, i) for i in batch["index"].tolist()]
        np.testing.assert_array_equal(batch["labels"], tags(shown))


def test_classes_are_counted_once_for_each_image(numbered):
    assert TaggedSource(source=numbered(size=5)).class_counts().tolist() == [2, 2, 1, 0, 0]
    assert numbered(size=12).class_counts().tolist() == [2, 2] + [1] * 8
    assert TaggedSource(source=numbered(size=1)).class_counts().tolist() == [0] * 5


@pytest.fixture
def damaged(numbered):
    """A source of which records 7, 8 and 99 are broken."""

    class Damaged(numbered):
        def __getitem__(self, index):
            record = super().__getitem__(index)
            return dataclasses.replace(record, image=b"") if index in (7, 8, 99) else record

    return Damaged


def test_broken_image_names_the_record(damaged):
    batches = eval_batches(damaged(), config(), batch_size=4, rows=range(4))
    assert next(batches)["index"].tolist() == [0, 1, 2, 3]
    with pytest.raises(
        DataError, match=r"record 7 of numbered 'train': .*cannot be decoded.*; .*data.broken"
    ):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)


def test_skipping_puts_the_next_good_image_in_the_place_of_a_broken_one(damaged, numbered, caplog):
    data = config(broken="skip", max_broken=0.03)
    source, expected = damaged(), numbered()
    whole = take(18, train_batches(source, data, seed=0, rows=range(16)))
    clean = take(18, train_batches(expected, data, seed=0, rows=range(16)))
    stand_in = {7: 9, 8: 9, 99: 0}
    for batch, other in zip(whole, clean, strict=True):
        np.testing.assert_array_equal(batch["index"], other["index"])  # the order is not disturbed
        np.testing.assert_array_equal(batch["broken"], np.isin(batch["index"], [7, 8, 99]))
        shown = np.array([stand_in.get(i, i) for i in batch["index"].tolist()])
        assert (batch["images"][:, 0, 0, 0] == shown).all()
        np.testing.assert_array_equal(batch["labels"], shown % 10)
    assert source.broken.keys() == {7, 8, 99}
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3  # once each, though three epochs have met them
    assert lines[2].startswith("skipped (3 of at most 3): record ")
    for start, rows in ((5, range(16)), (0, range(3, 9))):
        part = take(
            18 - start, train_batches(damaged(), data, seed=0, rows=np.asarray(rows), start=start)
        )
        assert_same(part, [select(batch, np.asarray(rows)) for batch in whole[start:]])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("later", "reason"),
    [
        ("whole", "it could not be decoded when its batch was made, but can be now (is it still "),
        ("gone", "cannot be read"),
    ],
)
def test_an_image_that_changes_after_its_batch_was_made_is_broken(
    make_photos, monkeypatch, later, reason, workers
):
    """It was left out of the batch, whatever a second look at it shows."""
    root = make_photos({"train/a": 4, "train/b": 4})
    path = root / "train/b/0005.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:30])
    data = config(source=f"folder:{root}", broken="skip", max_broken=0.5, num_workers=workers)
    source = open_source(data, "train")

    def note(images, records):
        if later == "whole":
            path.write_bytes(whole)
        else:
            path.unlink(missing_ok=True)
        note_broken(images, records)

    note_broken = making._note_broken
    monkeypatch.setattr(making, "_note_broken", note)
    (batch,) = eval_batches(source, data, batch_size=8, rows=range(8))
    (record,) = batch["index"][batch["broken"]].tolist()
    assert source.broken.keys() == {record}
    assert source.broken[record].startswith(source.describe(record))
    assert reason in source.broken[record]


def test_skipping_stops_when_too_many_are_broken(damaged, caplog):
    data = config(broken="skip", max_broken=0.02)
    with pytest.raises(
        DataError,
        match=r"data.max_broken: more than 2.00% of the 100 images .* last one: rec.*0.03 or more",
    ):
        take(12, train_batches(damaged(), data, seed=0, rows=range(16)))
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


def test_skipping_when_nothing_can_be_decoded(numbered, caplog):
    class Hopeless(numbered):
        def __getitem__(self, index):
            return dataclasses.replace(super().__getitem__(index), image=b"?")

    data = config(broken="skip", max_broken=1.0)
    with pytest.raises(DataError, match="none of the 100 images of numbered is readable"):
        take(1, train_batches(Hopeless(), data, seed=0, rows=range(16)))
    with pytest.raises(DataError, match=r"data.max_broken: more than 100"):
        list(eval_batches(Hopeless(), data, batch_size=16, rows=range(16)))


def test_evaluation_leaves_broken_images_out(damaged, caplog):
    data = config(broken="skip", max_broken=0.03)
    source = damaged()
    batches = list(eval_batches(source, data, batch_size=16, rows=range(16)))
    seen = np.concatenate([batch["index"][batch["mask"]] for batch in batches]).tolist()
    assert seen == sorted(set(range(100)) - {7, 8, 99})
    left_out = np.concatenate([batch["index"][batch["broken"]] for batch in batches]).tolist()
    assert left_out == [7, 8, 99]
    list(eval_batches(source, data, batch_size=16, rows=range(16)))
    assert len(caplog.records) == 3


def test_broken_images_are_found_in_worker_processes_too(digits, digits_config, caplog):
    """The worker marks them; this process counts and logs."""
    background = dataclasses.replace(digits_config, broken="skip", num_workers=1, num_threads=1)
    source = Shortened(
        name="digits", split="train", class_names=digits.class_names, source=digits, bad=1009
    )
    batches = take(2, train_batches(source, background, seed=0, rows=range(32)))
    index = np.concatenate([batch["index"] for batch in batches])
    broken = np.concatenate([batch["broken"] for batch in batches])
    assert index[broken].tolist() == [1009]
    assert list(source.broken) == [1009]
    assert not multiprocessing.active_children()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shortened(Source):
    """Another source, with one record cut short."""

    source: Source
    bad: int

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        record = self.source[index]
        return dataclasses.replace(record, image=record.image[:30]) if index == self.bad else record


def test_the_bound_on_pixels_reaches_training_and_evaluation(tmp_path):
    """As all that is broken: named, or with "skip" left out."""
    for split in ("train", "test"):
        for name, side in (("a", 20), ("b", 8)):
            (folder := tmp_path / split / name).mkdir(parents=True)
            PIL.Image.new("RGB", (side, side)).save(folder / "image.png")
    data = config(source=f"folder:{tmp_path}", interpolation="bilinear", max_pixels=100)
    source = open_source(data, "train")
    large = next(i for i in range(2) if source[i].label == 0)
    for images in (TrainingImages, EvaluationImages):
        with pytest.raises(BrokenImageError, match=r"20 x 20 pixels are more than 100"):
            images(source, data)[large]
    skipping = dataclasses.replace(data, broken="skip")
    (image, label), replaced = TrainingImages(source, skipping).or_next(large)
    assert (image.shape, label, replaced) == ((6, 6, 3), 1, True)
    assert EvaluationImages(source, skipping).or_none(large) is None
    assert EvaluationImages(source, dataclasses.replace(data, max_pixels=400)).or_none(large)
