import dataclasses
import re

import numpy as np
import PIL.Image

from jaxcls.config import DataConfig
from jaxcls.data.source import Record, Source
from jaxcls.data.sources import open_source
from jaxcls.data.survey import describe, survey


def config(**fields):
    return DataConfig(canvas_size=8, num_threads=2, **fields)


def opened(root, split="train+test"):
    return open_source(DataConfig(source=f"folder:{root}", test_share=0.2), split)


def test_everything_is_counted(make_photos):
    root = make_photos({"cat": 3, "dog": 5})
    PIL.Image.fromarray(np.zeros((40, 30, 3), np.uint8)).save(root / "dog/large.jpg")
    PIL.Image.fromarray(np.zeros((1, 2, 3), np.uint8)).save(root / "cat/bad_name.jpg", "PNG")
    (root / "dog/broken.jpg").write_bytes(b"no")
    found = survey(opened(root), config())
    assert (found.num_examples, found.num_seen) == (11, 11)
    assert found.classes == {"cat": 4, "dog": 7}
    assert found.formats == {"PNG": 9, "JPEG": 1}
    assert (found.heights, found.widths) == ((1, 4, 40), (2, 4, 30))
    assert found.megabytes == sum(file.stat().st_size for file in root.rglob("*.*")) / 1e6
    (problem,) = found.broken
    assert problem.startswith(f"image '{root}/dog/broken.jpg': the image cannot be decoded")
    assert found.images_per_second > 0
    text = describe(found)
    assert f"{root.name} 'train+test': 11 images\n  2 classes:\n    dog  7\n    cat  4\n" in text
    assert "height: 1 to 40, median 4" in text
    assert "broken: 1\n" in text


def test_images_of_several_classes_count_for_each(make_photos):
    source = Tagged(source=opened(make_photos({"cat": 3, "dog": 5})), class_names=("x", "y"))
    found = survey(source, config())
    assert found.classes == {"x": 4, "y": 4}
    assert found.classes_per_image == {0: 2, 1: 4, 2: 2}
    assert "  images by their number of classes: 0: 2, 1: 4, 2: 2\n" in describe(found)
    single = survey(source.source, config())
    assert single.classes_per_image == {1: 8}
    assert "number of classes" not in describe(single)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tagged(Source):
    """Another source, whose records have none, the first, the second or both classes in turn."""

    source: Source
    name: str = "tagged"
    split: str = "train"
    multi_label: bool = True

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        labels = ((), (0,), (1,), (0, 1))
        return Record(self.source[index].image, labels[index % 4])


def test_a_part_is_spread_over_the_whole(numbered):
    found = survey(numbered(size=100), config(), limit=10)
    assert (found.num_examples, found.num_seen) == (100, 10)
    assert found.classes == {"0": 10} | dict.fromkeys("123456789", 0)
    assert "100 images (10 of them read)" in describe(found)
    assert survey(numbered(size=5), config(), limit=10).num_seen == 5


def test_long_lists_are_cut(numbered):
    class Hopeless(numbered):
        def __getitem__(self, index):
            return dataclasses.replace(super().__getitem__(index), image=b"")

    names = tuple(f"class {i}" for i in range(50))
    text = describe(survey(Hopeless(class_names=names), config()))
    assert "… 30 more …" in text
    assert len(re.findall("    class ", text)) == 20
    assert "broken: 100" in text
    assert "… 90 more (--json lists them)" in text
    assert "formats: none" in text
