"""A user's own Flax module, in a file of the current folder, by the same commands."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import Message, Run
from flax import traverse_util
from safetensors.numpy import save_file

from jaxcls.config import Config, DataConfig, ModelConfig, OptimizerConfig, decode, encode
from jaxcls.config.decoding import ConfigError
from jaxcls.distributed.mesh import make_mesh
from jaxcls.distributed.random_keys import random_key
from jaxcls.inference.classifier import ImageClassifier
from jaxcls.models import own_module
from jaxcls.models.own_code import source_code
from jaxcls.models.registry import model_from_config, model_spec
from jaxcls.training.build import build_training
from jaxcls.training.parameter_rates import rate_factors

MODULE = '''
import dataclasses
import functools

import jax.numpy as jnp
from flax import linen as nn


class Small(nn.Module):
    num_classes: int
    width: int = 4
    dtype: jnp.dtype = jnp.float32
    image_size = 16
    mean = (0.5, 0.5, 0.5)
    layers = (("conv", "norm"), "dense", "classifier")

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Conv(self.width, (3, 3), strides=2, dtype=self.dtype, name="conv")(images)
        x = nn.relu(nn.BatchNorm(not train, dtype=self.dtype, name="norm")(x))
        x = nn.relu(nn.Dense(6, dtype=self.dtype, name="dense")(x.mean((1, 2))))
        return nn.Dense(self.num_classes, name="classifier")(x)


def plain(num_classes):
    return Plain(num_classes)


class Plain(nn.Module):
    """Without batch norm, dtype and layers."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(self.num_classes, name="classifier")(images.mean((1, 2)))


class Headless(Plain):
    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(self.num_classes, name="head")(images.mean((1, 2)))


class Wide(Plain):
    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(self.num_classes + 1, name="classifier")(images.mean((1, 2)))


class Forgetful(Small):
    layers = (("conv",), "classifier", "other")


class Caching(Plain):
    @nn.compact
    def __call__(self, images, train):
        self.variable("cache", "seen", jnp.zeros, ())
        return nn.Dense(self.num_classes, name="classifier")(images.mean((1, 2)))


class Noisy(Plain):
    @nn.compact
    def __call__(self, images, train):
        if train:
            self.make_rng("noise")
        return nn.Dense(self.num_classes, name="classifier")(images.mean((1, 2)))


class Pair(Plain):
    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(self.num_classes, name="classifier")(images.mean((1, 2))), 1


class Spread(Plain):
    @nn.compact
    def __call__(self, images, train):
        return nn.Conv(self.num_classes, (1, 1), name="classifier")(images).mean((1, 2))


class Listed(Plain):
    """With a field that cannot be hashed, and a number called layers."""

    stages: list = dataclasses.field(default_factory=lambda: [2, 2])
    layers: int = 3

    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(self.num_classes, name="classifier")(inputs=images.mean((1, 2)))


class Flat(Plain):
    """Whose classifier's shape depends on the size of the images."""

    @nn.compact
    def __call__(self, images, train):
        print("called")
        assert images.shape[1] < 100, "too large"
        features = images.reshape(images.shape[0], -1)
        return nn.Dense(self.num_classes, name="classifier")(features)


class Late(Plain):
    """Imports when it is called."""

    @nn.compact
    def __call__(self, images, train):
        from mine import extra

        return nn.Dense(self.num_classes, name="classifier")(extra.pool(images))


class Drops(Plain):
    @nn.compact
    def __call__(self, images, train):
        ones = nn.Dropout(0.5, deterministic=not train)(jnp.ones((len(images), 6)))
        return nn.Dense(self.num_classes, name="classifier")(ones)


class Counting(Plain):
    @nn.compact
    def __call__(self, images, train):
        self.variable("batch_stats", "count", jnp.zeros, (), jnp.int32)
        return nn.Dense(self.num_classes, name="classifier")(images.mean((1, 2)))


class Twice(Small):
    layers = (("conv", "norm"), "norm", "dense", "classifier")


class Reversed(Small):
    layers = ("classifier", "dense", ("conv", "norm"))


class NotLast(Plain):
    @nn.compact
    def __call__(self, images, train):
        x = nn.Dense(self.num_classes, name="classifier")(images.mean((1, 2)))
        return nn.Dense(4, name="out")(x)


class Early(Plain):
    """With a classifier of pixels, after which their mean is taken."""

    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(self.num_classes, name="classifier")(images).mean((1, 2))


class Squeezed(Plain):
    """Whose result has the right shape for some numbers of images only."""

    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(self.num_classes, name="classifier")(images.mean((1, 2))).T


class Mixed(Plain):
    layers = ("classifier", 3)


class Stages(Plain):
    layers = (2, 2)


class Array(Plain):
    @nn.compact
    def __call__(self, images, train):
        kernel = self.param("classifier", nn.initializers.zeros, (3, self.num_classes))
        return images.mean((1, 2)) @ kernel


class Black(Plain):
    std = (1.0, 0.0, 1.0)


class Other:
    def __init__(self, num_classes):
        pass


class Again(Plain):
    @nn.compact
    def __call__(self, images, train):
        return nn.remat(nn.Dense)(self.num_classes, name="classifier")(images.mean((1, 2)))


Half = functools.partial(Small, width=2)


class Sized(Plain):
    image_size = "16"


def anything(**arguments):
    return Plain(3)


def fails(num_classes):
    raise RuntimeError("no such file")


def number(num_classes):
    return 7


constant = 7
'''

CONFIG = """
from jaxcls.config import Config, DataConfig, ModelConfig, OptimizerConfig


def get_config():
    return Config(
        model=ModelConfig(name="mine.small:Small", options={"width": 3}),
        data=DataConfig(source="digits", batch_size=32, image_size=16, canvas_size=8),
        optimizer=OptimizerConfig(learning_rate=0.1, layer_decay=0.9, ema_decay=0.9),
        num_steps=4,
        log_images=0,
    )
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a package of the user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("export").mkdir()
    Path("export/model.stablehlo").touch()
    Path("weights").mkdir()
    Path("weights/w.safetensors").touch()
    Path("theirs/checkpoints/2").mkdir(parents=True)
    for folder in ("export", "weights", "theirs"):  # without their config.json
        Path(folder, "evil.py").write_text("raise AssertionError")
    Path("mine").mkdir()
    Path("mine/__init__.py").touch()
    Path("mine/small.py").write_text(MODULE)
    Path("mine/broken.py").write_text("def (")
    Path("mine/leaves.py").write_text("import sys; sys.exit('bye')")
    Path("mine/extra.py").write_text("def pool(images): return images.mean((1, 2))")
    Path("mine/needs.py").write_text("import nothing_here")
    yield tmp_path
    forget()


def forget() -> None:
    """As in a new process, nothing of the user's is imported."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]
    own_module.own_spec.cache_clear()
    own_module._shapes.cache_clear()


def config(name: str, **fields: Any) -> Config:
    return Config(
        model=ModelConfig(name=f"mine.small:{name}", **fields),
        data=DataConfig(source="digits", batch_size=16, image_size=16, canvas_size=8),
        num_steps=4,
    )


@pytest.mark.usefixtures("here")
def test_every_command_works_on_it(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    Path("config.py").write_text(CONFIG)
    assert run("train", "config.py", "--workdir", "run").status == 0
    trained = json.loads(run("evaluate", "run", "--json").out.splitlines()[-1])
    assert trained["num_examples"] == 355
    exported = run("export", "run", "-o", "exported", "--platforms", "cpu")
    assert exported.status == 0, exported.err
    again = run("evaluate", "exported/weights.safetensors", "--data.source", "digits", "--json")
    assert json.loads(again.out.splitlines()[-1])["loss"] == pytest.approx(trained["loss"])
    finetuned = run(
        *("train", "config.py", "--workdir", "finetuned"),
        *("--model.weights", "exported/weights.safetensors", "--num-steps", "1"),
    )
    assert finetuned.status == 0, finetuned.err
    assert run("train", "config.py", "--workdir", "run", "--num-steps", "5").status == 2
    for weights in ("run", "exported/weights.safetensors"):  # the given option goes first
        wider = run(
            *("train", "config.py", "--workdir", "wide", "--model.weights", weights),
            *("--model.options.width", "5"),
        )
        assert wider.status == 2
        assert "norm" in wider.err
        assert "Traceback" not in wider.err
    record = json.loads(Path("run/config.json").read_text())
    assert record["code"].startswith("small.py ")
    forget()
    Path("mine/small.py").write_text(f"{MODULE}\n# changed\n")
    longer = run(*("train", "config.py", "--workdir", "run", "--num-steps", "5", "--allow-changes"))
    assert "has changed since the run began" in longer.err
    forget()
    Path("mine/small.py").write_text(f"{MODULE}\n# changed again\n")
    with caplog.at_level("WARNING", "jaxcls"):
        classifier = ImageClassifier.from_run("run")
    assert (
        "the code of mine.small:Small has changed since these weights were trained" in caplog.text
    )
    images = np.zeros((2, 9, 9, 3), np.uint8)
    assert classifier.features(images).shape == (2, 6)
    forget()
    Path("mine/small.py").unlink()
    missing = run("evaluate", "run")
    assert missing.status == 2
    assert "model.name: mine.small:Small cannot be imported" in missing.err
    assert "install the package of mine.small, or run the command in the folder" in missing.err


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", [pytest.param("plain", marks=pytest.mark.long), "Listed"])
def test_a_network_without_batch_norm_is_exported_and_opened_again(run: Run, name: str) -> None:
    config = CONFIG.replace("Small", name).replace(', options={"width": 3}', "")
    Path("config.py").write_text(config.replace("layer_decay=0.9, ", ""))
    trained = run("train", "config.py", "--workdir", "run")
    assert trained.status == 0, trained.err
    loss = json.loads(run("evaluate", "run", "--json").out.splitlines()[-1])["loss"]
    assert run("export", "run", "-o", "exported", "--platforms", "cpu").status == 0
    weights = "exported/weights.safetensors"
    again = run("evaluate", weights, "--data.source", "digits", "--json")
    assert json.loads(again.out.splitlines()[-1])["loss"] == pytest.approx(loss)
    tuned = run("train", "config.py", "--workdir", "tuned", "--model.weights", weights)
    assert tuned.status == 0, tuned.err
    images = np.zeros((2, 16, 16, 3), np.uint8)
    assert ImageClassifier.from_run("run").predict(images).shape == (2, 10)


@pytest.mark.usefixtures("here")
def test_shapes_may_depend_on_the_size_of_the_images(run: Run) -> None:
    """The size is that of the data; and the prints of a module do not disturb JSON."""
    Path("config.py").write_text(
        CONFIG.replace("Small", "Flat")
        .replace(', options={"width": 3}', "")
        .replace("layer_decay=0.9, ", "")
    )
    trained = run("train", "config.py", "--workdir", "run")
    assert trained.status == 0, trained.err
    metrics = json.loads(run("evaluate", "run", "--json").out.splitlines()[-1])
    other = run("evaluate", "run", "--data.image-size", "18")
    assert other.status == 2
    assert "mine.small:Flat fails on images [" in other.err
    assert "18, 18, 3] with train=False" in other.err
    Path("mine/small.py").write_text(MODULE.replace("images.shape[0], -1", "len(images), -1"))
    forget()
    counted = run("export", "run", "-o", "made")
    assert "an export takes any number of images, so write images.shape[0]" in counted.err
    Path("mine/small.py").write_text(MODULE)
    forget()
    for command in ("convert", "export"):
        made = run(command, "run", "-o", "made.safetensors" if command == "convert" else "made")
        assert made.status == 0, made.err
    for weights in ("made.safetensors", "made/weights.safetensors"):
        again = run("evaluate", weights, "--data.source", "digits", "--json")
        assert again.out.startswith("top1")
        assert json.loads(again.out.splitlines()[-1])["loss"] == pytest.approx(metrics["loss"])


@pytest.mark.usefixtures("here")
def test_weights_without_metadata_take_the_options_of_the_config(run: Run) -> None:
    variables = model_from_config(config("Small", options={"width": 3}), num_classes=10)
    values = variables.init(random_key(0), np.zeros((1, 16, 16, 3)))
    save_file(
        {
            path: np.asarray(leaf)
            for path, leaf in traverse_util.flatten_dict(values, sep="/").items()
        },
        "plain.safetensors",
    )
    Path("config.py").write_text(CONFIG)
    tuned = run("train", "config.py", "--workdir", "run", "--model.weights", "plain.safetensors")
    assert tuned.status == 0, tuned.err
    assert "10 variables filled" in tuned.err


@pytest.mark.usefixtures("here")
def test_a_module_may_import_when_it_is_called() -> None:
    assert model_spec("mine.small:Late").num_features == 3


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", ["Again", "Early", "Stages", "Half"])
def test_what_else_may_be_a_factory(name: str) -> None:
    network = model_from_config(config(name), num_classes=4)
    variables = network.init(random_key(0), np.zeros((1, 16, 16, 3)))
    images = np.zeros((3, 16, 16, 3))
    width = network.spec.num_features
    assert network.apply(variables, images).shape == (3, 4)
    assert network.apply(variables, images, features=True).shape == (3, width)
    headless = model_from_config(config(name), num_classes=0)
    variables = headless.init(random_key(0), np.zeros((1, 16, 16, 3)))
    assert "classifier" not in variables["params"]
    assert headless.apply(variables, images).shape == (3, width)
    assert (source_code(f"mine.small:{name}") or "").startswith("small.py ")


@pytest.mark.usefixtures("here")
def test_a_prior_needs_a_bias(message: Message) -> None:
    Path("mine/small.py").write_text(
        MODULE.replace('name="classifier"', 'use_bias=False, name="classifier"')
    )
    Path("config.py").write_text(CONFIG)
    said = message("train", "config.py", "--model.head-prior", "True")
    assert "model.head_prior: the classifier of mine.small:Small has no bias" in said


@pytest.mark.usefixtures("here")
def test_micro_batches_draw_different_random_numbers() -> None:
    network = model_from_config(config("Drops"), num_classes=3)
    variables = network.init(random_key(0), np.zeros((2, 16, 16, 3)))

    def features(first: int) -> Any:
        positions = first + jnp.arange(2)
        return network.apply(
            variables,
            np.zeros((2, 16, 16, 3)),
            train=True,
            positions=positions,
            rngs={"dropout": random_key(0)},
            features=True,
        )

    assert (features(0) != features(2)).any()
    np.testing.assert_array_equal(features(2), features(2))


@pytest.mark.usefixtures("here")
def test_its_spec_comes_from_its_attributes() -> None:
    spec = model_spec("mine.small:Small")
    assert (spec.image_size, spec.mean, spec.num_features) == (16, (0.5, 0.5, 0.5), 6)
    assert model_spec("mine.small:plain").image_size == 224


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", ["Small", "plain"])
def test_steps_on_several_devices_and_micro_batches_agree(name: str) -> None:
    """With and without batch norm; global statistics make micro-batches differ."""
    losses = []
    for devices, micro_batches in ((1, 1), (4, 1), (1, 2)):
        if (name, micro_batches) == ("Small", 2):
            continue
        changed = config(name)
        optimizer = OptimizerConfig(micro_batches=micro_batches, ema_decay=0.9)
        training = build_training(
            Config(model=changed.model, data=changed.data, optimizer=optimizer, num_steps=4),
            num_classes=5,
            num_examples=100,
            mesh=make_mesh(jax.devices()[:devices]),
        )
        draws = np.random.default_rng(0)
        batch = {
            "images": draws.integers(256, size=(16, 8, 8, 3), dtype=np.uint8),
            "sizes": np.full((16, 2), 8, np.int32),
            "labels": draws.integers(5, size=16).astype(np.int32),
        }
        (step,) = training.steps.values()
        state = training.init()
        state, _ = step(state, batch)
        _, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)


@pytest.mark.usefixtures("here")
def test_bfloat16_needs_an_argument_dtype() -> None:
    changed = config("Small")
    made = model_from_config(
        Config(model=changed.model, num_steps=1, compute_dtype="bfloat16"), num_classes=3
    )
    variables = made.init(random_key(0), np.zeros((1, 16, 16, 3)))
    assert made.apply(variables, np.zeros((2, 16, 16, 3))).dtype == np.float32
    with pytest.raises(ConfigError, match=r"compute_dtype: .*plain takes no argument dtype"):
        model_from_config(
            Config(model=config("plain").model, num_steps=1, compute_dtype="bfloat16"),
            num_classes=3,
        )


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mine.small:Nothing", {}, r"mine\.small has no function or class 'Nothing'"),
        ("mine.small:constant", {}, r"has no function or class 'constant'"),
        ("mine.none:Small", {}, r"mine\.none:Small cannot be imported \(ModuleNotFoundError"),
        ("mine.small:number", {}, r"returned int, not a flax\.linen\.Module"),
        ("mine.small:fails", {}, r"model\.name: .*fails failed: RuntimeError: no such file"),
        ("mine.small:Small", {"depth": 3}, r"model\.options: .*depth.*it takes num_classes, width"),
        ("mine.small:Headless", {}, r"last layer of .* must be named 'classifier'"),
        (
            "mine.small:Wide",
            {},
            r"for 2 images .* logits of shape \(2, 4\); expected \(2, 3\)",
        ),
        ("mine.small:Forgetful", {}, r"missing: dense, norm; not among its layers: other"),
        ("mine.small:Twice", {}, r"must name each of its layers once; named twice: norm"),
        ("mine.small:Reversed", {}, r"so it ends with 'classifier', not with conv, norm"),
        ("mine.small:Counting", {}, r"variable batch_stats/count of int32; jaxcls trains and"),
        ("mine.small:Sized", {}, r"attribute `image_size` of .* must be a number of pixels"),
        ("mine.small:Flat", {}, r"fails on images \[2, 224, 224, 3\] .*: too large; data.image"),
        ("mine.small:Caching", {}, r"has the variables cache; jaxcls trains params and"),
        (
            "mine.small:Smal",
            {},
            r"class 'Smal'; did you mean 'Small'\?; it has Small",
        ),
        ("mine/small.py:Small", {}, r"is no name of a module; write mine\.small:Small"),
        ("./small:Small", {}, r"is no name of a module; write small:Small"),
        (":Small", {}, r"is no name of a module; write package\.module:Small"),
        ("mine.small:NotLast", {}, r"for 2 images .* logits of shape \(2, 4\); expected \(2, 3\)"),
        ("mine.small:Squeezed", {}, r"logits of shape \(3, 2\); expected \(2, 3\)"),
        ("mine.small:Mixed", {}, r"`layers` of .* must have names, got \['classifier', 3\]"),
        ("mine.small:Array", {}, r"must be named 'classifier' and have a kernel"),
        ("mine.small:Black", {}, r"`std` of .* those of std not 0"),
        ("mine.small:Other", {}, r"mine\.small:Other is not a flax\.linen\.Module"),
        ("weights.evil:Small", {}, r"weights\.evil is in .*weights, which .* has other weights"),
        ("theirs.evil:Small", {}, r"theirs\.evil is in .*theirs, which is a run or an export"),
        ("mine.broken:Small", {}, r"mine\.broken fails when imported: SyntaxError"),
        ("mine.leaves:Small", {}, r"mine\.leaves fails when imported: SystemExit: bye"),
        ("export.evil:Small", {}, r"export\.evil is in .*export, which is a run or an export"),
        ("mine.small:anything", {}, r"must take the argument num_classes; it takes arguments"),
        ("builtins:dict", {}, r"builtins:dict is not a flax\.linen\.Module"),
        ("mine.small:Small", {"dtype": "float64"}, r"model\.options: dtype is not an option"),
        ("mine.small:Pair", {}, r"returns logits of shape tuple; expected \(2, 3\)"),
        ("mine.small:Spread", {}, r"layer 'classifier' of .* must be a Dense layer"),
        (
            "mine.needs:Small",
            {},
            r"mine\.needs imports nothing_here, which is not installed and not in this",
        ),
        ("mine.small:Noisy", {}, r"with train=True: .*noise.*have the name 'dropout'"),
        ("mine.small:Small", {"width": -1}, r"fails on images \[2, 16, 16, 3\]"),
    ],
)
def test_what_cannot_be_used_is_named(name: str, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model_spec(name, options)


@pytest.mark.usefixtures("here")
def test_mistakes_end_a_command_with_one_message(message: Message) -> None:
    Path("config.py").write_text(CONFIG.replace("mine.small:Small", "mine.none:Small"))
    assert "model.name: mine.none:Small cannot be imported" in message("train", "config.py")
    Path("config.py").write_text(CONFIG)
    said = message("train", "config.py", "--model.dropout", "0.1")
    assert "model.dropout: has no effect on mine.small:Small" in said


def test_layers_without_an_order_have_no_decay() -> None:
    params = {"a": {"kernel": np.zeros(1)}, "classifier": {"kernel": np.zeros(1)}}
    with pytest.raises(ConfigError, match=r"layer_decay: .* `layers`, from the first to the last"):
        rate_factors(OptimizerConfig(layer_decay=0.5), params, ())
    assert rate_factors(OptimizerConfig(), params, ())["a"]["kernel"] == 1


def test_options_are_for_modules_of_the_user() -> None:
    mixed = encode(Config(model=ModelConfig(name="tiny", options={"a": 1}), num_steps=1))
    with pytest.raises(ConfigError, match=r"model\.options: tiny takes none"):
        decode(mixed)


@pytest.mark.parametrize("what", ["checkpoints/2", "model.stablehlo", "../model.stablehlo"])
def test_a_run_or_an_export_is_no_place_to_import_from(here: Path, what: str) -> None:
    Path("config.json").write_text("{}")  # which others use, too
    assert model_spec("mine.small:Small").name == "mine.small:Small"
    forget()
    monkeypatched = [entry for entry in sys.path if entry != str(here)]
    sys.path[:] = monkeypatched
    Path(what).mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"mine\.small:Small cannot be imported"):
        model_spec("mine.small:Small")
    assert str(here) not in sys.path
