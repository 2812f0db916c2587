"""hf:OWNER/REPO, from a cache made here and from a small server that answers as the Hub does."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from command_line import Message, Run
from huggingface_hub import constants
from safetensors.numpy import save
from torch_files import whole, write_zip

from jaxcls import ImageClassifier
from jaxcls.config import Config, DataConfig, ModelConfig
from jaxcls.config.decoding import decode_fields, encode_fields
from jaxcls.models.registry import model_spec
from jaxcls.models.weights_info import WeightsError, WeightsInfo
from jaxcls.pretrained.class_names import read_class_names
from jaxcls.pretrained.families import find_family
from jaxcls.pretrained.files import read_weights
from jaxcls.pretrained.imagenet import imagenet_class_names, imagenet_wordnet_ids
from jaxcls.pretrained.importing import import_variables
from jaxcls.pretrained.jaxcls_file import stored_info
from jaxcls.pretrained.resolve import info_for, resolve
from jaxcls.pretrained.variables import variable_shapes
from jaxcls.pretrained.weights import kind_of_weights, load_weights, weights_info

COMMIT, OTHER = "0123456789abcdef0123456789abcdef01234567", "89abcdef" * 5
NAME = "hf:someone/flowers"
LABELS = ["daisy", "rose", "tulip"]
# As timm writes it.
CONFIG: dict[str, Any] = {
    "architecture": "tiny",
    "num_classes": 3,
    "num_features": 32,
    "global_pool": "avg",
    "label_names": LABELS,
    "pretrained_cfg": {
        "tag": "mine",
        "input_size": [3, 32, 32],
        "test_input_size": [3, 48, 48],
        "fixed_input_size": False,
        "interpolation": "bilinear",
        "crop_pct": 0.9,
        "test_crop_pct": 0.95,
        "crop_mode": "center",
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "classifier": "classifier",
    },
}
type Tensors = dict[str, np.ndarray]
type Keep = Callable[..., Path]


def tensors_of(model: str, *, num_classes: int = 3, channels: int = 3) -> Tensors:
    """A network's tensors as timm stores them."""
    rng, spec = np.random.default_rng(0), model_spec(model, channels=channels)
    telltale = "layer1.0.conv1.weight" if model == "tiny_resnet" else "conv_stem.weight"
    names = find_family([telltale]).names(spec, ())
    axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
    return {
        names[path]: np.ascontiguousarray(
            rng.uniform(0.5, 1, shape).astype("f4").transpose(axes[len(shape)])
        )
        for path, shape in variable_shapes(spec, num_classes=num_classes).items()
    }


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.fixture
def keep(cache: Path) -> Keep:
    """Puts a repository into the cache, as downloads do."""

    def keep(
        config: Any = CONFIG,
        tensors: Tensors | None = None,
        *,
        repository: str = "someone/flowers",
        commit: str = COMMIT,
        ref: str = "main",
    ) -> Path:
        folder = cache / f"models--{repository.replace('/', '--')}"
        snapshot = folder / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / ref).write_text(commit)
        if config is not None:
            text = config if isinstance(config, str) else json.dumps(config)
            (snapshot / "config.json").write_text(text)
        if tensors is not None:
            (snapshot / "model.safetensors").write_bytes(save(tensors))
        return snapshot

    return keep


def changed(**fields: Any) -> dict[str, Any]:
    """The config with other fields of pretrained_cfg."""
    return CONFIG | {"pretrained_cfg": CONFIG["pretrained_cfg"] | fields}


# --- What is read ---------------------------------------------------------------------------------


def test_the_config_decides(keep: Keep) -> None:
    keep(tensors=tensors_of("tiny"))
    expected = WeightsInfo(
        model="tiny",
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
        padding="symmetric",
        batch_norm_epsilon=1e-5,
        image_size=48,
        crop_fraction=0.95,
        interpolation="bilinear",
        class_names=tuple(LABELS),
        revision=COMMIT,
    )
    assert kind_of_weights(NAME) == "repository"
    assert weights_info(NAME) == expected
    file, info = load_weights(NAME)
    assert info == expected
    assert f"from {NAME} at commit {COMMIT}" in file.notes
    variables, report = import_variables(file, model_spec("tiny"), num_classes=None)
    assert (report.family, report.missing, report.unused) == ("timm", (), ())
    np.testing.assert_array_equal(
        variables["params"]["stem_conv"]["kernel"],
        tensors_of("tiny")["conv_stem.weight"].transpose(2, 3, 1, 0),
    )


@pytest.mark.parametrize(
    ("architecture", "model", "padding", "epsilon"),
    [
        ("tf_tiny", "tiny", "same", 1e-3),
        ("tf_efficientnet_b3", "efficientnet_b3", "same", 1e-3),
        ("tf_efficientnetv2_s", "efficientnetv2_s", "same", 1e-3),
        ("tf_efficientnet_es", "efficientnet_es", "same", 1e-3),
        ("efficientnet_b3", "efficientnet_b3", "symmetric", 1e-5),
        ("efficientnetv2_rw_m", "efficientnetv2_rw_m", "symmetric", 1e-5),
        ("efficientnet_lite0", "efficientnet_lite0", "symmetric", 1e-5),
        ("resnet50", "resnet50", "symmetric", 1e-5),
    ],
)
def test_the_name_of_the_network_tells_where_it_was_trained(
    keep: Keep, architecture: str, model: str, padding: str, epsilon: float
) -> None:
    keep(CONFIG | {"architecture": architecture})
    info = weights_info(NAME)
    assert (info.model, info.padding, info.batch_norm_epsilon) == (model, padding, epsilon)


def test_the_defaults_are_timms(keep: Keep) -> None:
    keep({"architecture": "tiny", "num_classes": 1000, "pretrained_cfg": {}})
    info = weights_info(NAME)
    assert (info.image_size, info.crop_fraction, info.interpolation) == (224, 0.875, "bicubic")
    assert (info.mean, info.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert info.class_names == imagenet_class_names()


def test_grey_images(keep: Keep) -> None:
    settings = {"test_input_size": [1, 48, 48], "mean": [0.5], "std": [0.1, 0.2, 0.3]}
    keep(changed(**settings) | {"model_args": {"in_chans": 1}}, tensors_of("tiny", channels=1))
    info = weights_info(NAME)
    assert (info.channels, info.mean, info.std) == (1, (0.5,), (pytest.approx(0.2),))
    images = [np.full((40, 40, 1), 100, np.uint8)]
    assert ImageClassifier.load(NAME).predict(images).shape == (1, 3)


def test_an_older_config_has_all_in_one_object(keep: Keep) -> None:
    config = CONFIG["pretrained_cfg"] | {"architecture": "tiny", "num_classes": 3}
    keep(config)
    info = weights_info(NAME)
    assert (info.model, info.image_size, info.class_names) == ("tiny", 48, None)


def test_other_settings(keep: Keep) -> None:
    settings = {
        "test_input_size": None, "test_crop_pct": None, "input_size": [3, 32, 64], "crop_pct": 1.0,
        "mean": [0.5], "std": [0.25], "crop_mode": "squash", "interpolation": "lanczos",
    }  # fmt: skip
    arguments = {"drop_rate": 0.3, "in_chans": 3}
    keep(
        changed(**settings) | {"global_pool": "max", "model_args": arguments},
        tensors_of("tiny"),
    )
    file, info = load_weights(NAME)
    assert (info.image_size, info.crop_fraction, info.pooling) == ((32, 64), 1.0, "max")
    assert (info.mean, info.std, info.interpolation) == ((0.5,) * 3, (0.25,) * 3, "bicubic")
    notes = " ".join(file.notes)
    assert "'squash'; jaxcls keeps their shape" in notes
    assert "'lanczos', jaxcls by bicubic" in notes


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (LABELS, tuple(LABELS)),
        ({"0": "daisy", "1": "rose", "2": "tulip"}, tuple(LABELS)),
        (list(imagenet_wordnet_ids()), imagenet_class_names()),
    ],
)
def test_class_names(keep: Keep, labels: Any, names: tuple[str, ...]) -> None:
    path = keep(CONFIG | {"label_names": labels, "num_classes": len(labels)}) / "config.json"
    assert weights_info(NAME).class_names == names
    assert read_class_names(path) == names


def test_resnets_too(keep: Keep) -> None:
    keep(CONFIG | {"architecture": "tiny_resnet"}, tensors_of("tiny_resnet"))
    file, info = load_weights(NAME)
    _, report = import_variables(file, model_spec(info.model), num_classes=None)
    assert (report.family, report.missing, report.unused) == ("resnet", (), ())


def test_a_pickle_is_read_by_the_restricted_reader(keep: Keep, tmp_path: Path) -> None:
    snapshot = keep()
    tensors = tensors_of("tiny")
    content = {name: whole(str(key), array) for key, (name, array) in enumerate(tensors.items())}
    write_zip(snapshot / "pytorch_model.bin", content)
    file, _ = load_weights(NAME)
    np.testing.assert_array_equal(file.tensors["bn1.bias"], tensors["bn1.bias"])


def test_the_revision_chooses(keep: Keep) -> None:
    keep(tensors=tensors_of("tiny"))
    keep(changed(crop_pct=0.5, test_crop_pct=None), commit=OTHER, ref="v2")
    assert weights_info(NAME).revision == COMMIT
    assert weights_info(f"{NAME}@main").revision == COMMIT
    for revision in ("v2", OTHER):
        info = weights_info(f"{NAME}@{revision}")
        assert (info.crop_fraction, info.revision) == (0.5, OTHER)


# --- What is used ---------------------------------------------------------------------------------


def test_a_config_records_the_revision(keep: Keep) -> None:
    keep(tensors=tensors_of("tiny"))
    config = Config(
        model=ModelConfig(name="auto", weights=NAME), data=DataConfig(image_size=0), num_steps=1
    )
    info = info_for(config)
    assert info is not None
    assert decode_fields(WeightsInfo, encode_fields(info), prefix="").revision == COMMIT
    resolved = resolve(config, info)
    assert (resolved.model.name, resolved.model.padding) == ("tiny", "symmetric")
    assert (resolved.model.mean, resolved.data.image_size) == ((0.1, 0.2, 0.3), 48)


def test_a_classifier_and_a_converted_file_predict_the_same(
    keep: Keep, run: Run, tmp_path: Path
) -> None:
    snapshot = keep(tensors=tensors_of("tiny"))
    result = run("convert", NAME, "-o", str(tmp_path / "ours.safetensors"))
    assert (result.status, result.err) == (0, "")
    assert f"from {NAME} at commit {COMMIT}" in result.out
    converted = stored_info(read_weights(tmp_path / "ours.safetensors"))
    assert converted == weights_info(NAME)
    images = list(np.random.default_rng(0).integers(0, 256, (2, 60, 50, 3), np.uint8))
    ours = ImageClassifier.load(NAME)
    assert ours.class_names == tuple(LABELS)
    expected = ours.features(images)
    again = ImageClassifier.load(tmp_path / "ours.safetensors")
    np.testing.assert_array_equal(again.predict(images), ours.predict(images))
    np.testing.assert_array_equal(again.features(images), expected)
    # The file alone does not say how it wants its images.
    plain = ImageClassifier.from_file(snapshot / "model.safetensors").features(images)
    assert np.max(np.abs(plain / expected - 1)) > 0.01


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["hf:", "hf:flowers", "hf:a/b/c", "hf:a/b@", "hf:../b", "hf:a/b@../c", "hf:a/b c", "hf:a/b@x/"],
)
@pytest.mark.usefixtures("cache")
def test_a_name_of_another_form(name: str) -> None:
    with pytest.raises(WeightsError, match="expected hf:OWNER/REPO or hf:OWNER/REPO@REVISION"):
        weights_info(name)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "holds a list and not an object"),
        ({}, "names no architecture, as timm's do; jaxcls reads repositories in timm's format"),
        (
            {"architectures": ["ResNetForImageClassification"], "model_type": "resnet"},
            "another library's .'ResNetForImageClassification'.",
        ),
        (CONFIG | {"architecture": "resnet51"}, "'resnet51' is not .*; did you mean 'resnet50'"),
        (
            CONFIG | {"architecture": "vit_base_patch16_224"},
            "not a network of jaxcls.*; known: eff",
        ),
        (CONFIG | {"architecture": "os:system"}, "not a network of jaxcls"),
        (CONFIG | {"model_args": {"act_layer": "gelu"}}, "model_args: act_layer changes the netw"),
        (CONFIG | {"model_args": [1]}, "model_args: expected an object"),
        (CONFIG | {"global_pool": "catavgmax"}, "global_pool: catavgmax is not known"),
        (CONFIG | {"num_classes": 4}, "names 3 classes, but num_classes is 4"),
        (CONFIG | {"num_classes": "3"}, "num_classes: expected a number"),
        (CONFIG | {"label_names": ["a", "a", "b"]}, "'a' is the name of several classes"),
        (CONFIG | {"model_args": {"in_chans": 1}}, "in_chans is 1, but input_size has 3 channels"),
        (changed(test_input_size=[3, 32]), "test_input_size: expected channels, height and width"),
        (changed(test_input_size=[3, 0, 32]), "test_input_size: expected channels"),
        (changed(test_crop_pct=1.5), "crop_pct: expected a share above 0"),
        (changed(test_crop_pct="0.9"), "crop_pct: expected a share above 0"),
        (changed(mean=[0.5, 0.5]), "mean: expected 3 numbers"),
        (changed(mean=[0.5, 0.5, 10**400]), "mean: expected 3 numbers"),
        (changed(std=[0.5, 0, 0.5]), "std: must be above 0"),
    ],
)
def test_what_jaxcls_does_not_have(keep: Keep, config: Any, message: str) -> None:
    keep(config)
    with pytest.raises(Exception, match=message) as error:
        weights_info(NAME)
    assert isinstance(error.value, ValueError)
    assert "config.json" in str(error.value)


def test_no_code_is_run(keep: Keep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even if the config names a module that could be imported."""
    (tmp_path / "evil.py").write_text("raise RuntimeError('run')")
    monkeypatch.syspath_prepend(tmp_path)
    snapshot = keep(CONFIG | {"architecture": "evil:factory", "auto_map": {"AutoModel": "evil.f"}})
    (snapshot / "evil.py").write_text("raise RuntimeError('run')")
    with pytest.raises(WeightsError, match="'evil:factory' is not a network of jaxcls"):
        load_weights(NAME)


def test_another_number_of_classes_than_the_config_has(keep: Keep) -> None:
    keep(tensors=tensors_of("tiny", num_classes=5))
    with pytest.raises(WeightsError, match=r"has 3 classes, but .* model.safetensors has 5"):
        load_weights(NAME)


def test_another_network_than_is_wanted(keep: Keep) -> None:
    keep()  # and the weights are not asked for
    with pytest.raises(WeightsError, match=f"weights '{NAME}' are of tiny, not of resnet50"):
        load_weights(NAME, model="resnet50")


def test_weights_of_another_network_than_the_config_names(keep: Keep, message: Message) -> None:
    keep(CONFIG | {"architecture": "tiny_resnet"}, tensors_of("tiny"))
    assert "does not fit tiny_resnet" in message("convert", NAME, "-o", "x.safetensors")


def test_offline_without_the_repository(cache: Path, message: Message) -> None:
    text = message("convert", NAME, "-o", "x.safetensors")
    assert f"{NAME}: config.json of someone/flowers is not in {cache}" in text
    assert "`hf download someone/flowers config.json model.safetensors`" in text


def test_offline_without_the_weights(keep: Keep) -> None:
    keep()
    with pytest.raises(WeightsError, match=rf"model.safetensors .*{COMMIT[:8]}\w*`; then copy its"):
        load_weights(NAME)


# --- The Hub --------------------------------------------------------------------------------------


class Hub(ThreadingHTTPServer):
    """A Hub with one repository.

    Attributes:
      files: their contents by name.
      refusal: status and X-Error-Code of every answer; None to serve the files.
      asked: method, revision and file of each request.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.refusal: tuple[int, str] | None = None
        self.asked: list[tuple[str, str, str]] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.server
        repository, _, rest = self.path.removeprefix("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        if file:  # the library also asks which program runs it
            hub.asked.append((self.command, revision, file))
        body = hub.files.get(file)
        if hub.refusal is not None:
            self._send(hub.refusal[0], b"", {"X-Error-Code": hub.refusal[1]})
        elif repository != "someone/flowers":
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", "v1", COMMIT):
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif body is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        else:
            etag = hashlib.sha256(body).hexdigest()
            self._send(200, body, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    server.files = {
        "config.json": json.dumps(CONFIG).encode(),
        "model.safetensors": save(tensors_of("tiny")),
    }
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    point_at(f"http://127.0.0.1:{server.server_address[1]}", monkeypatch)
    yield server
    huggingface_hub.close_session()
    server.shutdown()
    server.server_close()


def point_at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does, which huggingface_hub reads as it is imported."""
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("NO_PROXY", "*")
    huggingface_hub.close_session()


@pytest.mark.parametrize("name", [NAME, f"{NAME}@v1", f"{NAME}@{COMMIT}"])
def test_what_is_missing_is_downloaded_once(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert weights_info(name).revision == COMMIT
    assert {file for _, _, file in hub.asked} == {"config.json"}
    file, info = load_weights(name)
    assert info.revision == COMMIT
    assert file.path.is_relative_to(cache / "models--someone--flowers" / "snapshots" / COMMIT)
    # The weights are those of the commit whose config was read.
    assert {(revision, file) for _, revision, file in hub.asked if "model" in file} == {
        (COMMIT, "model.safetensors")
    }
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    again, _ = load_weights(name)
    assert again.tensors.keys() == file.tensors.keys()
    assert hub.asked == []


def test_a_repository_with_a_pickle_only(hub: Hub, tmp_path: Path) -> None:
    tensors = tensors_of("tiny")
    content = {name: whole(str(key), array) for key, (name, array) in enumerate(tensors.items())}
    del hub.files["model.safetensors"]
    hub.files["pytorch_model.bin"] = write_zip(tmp_path / "model.bin", content).read_bytes()
    file, _ = load_weights(NAME)
    assert file.path.name == "pytorch_model.bin"
    np.testing.assert_array_equal(file.tensors["bn1.bias"], tensors["bn1.bias"])


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "someone/flowers has no config.json, so its network is unknown"),
        ("model.safetensors", "has neither model.safetensors nor pytorch_model.bin"),
    ],
)
def test_a_repository_without_a_file(hub: Hub, missing: str, message: str) -> None:
    del hub.files[missing]
    with pytest.raises(WeightsError, match=f"^{NAME}: .*{message}"):
        load_weights(NAME)


@pytest.mark.parametrize(
    ("name", "refusal", "message"),
    [
        (
            NAME,
            (403, "GatedRepo"),
            "accepted its terms .*/someone/flowers, then log in with hf auth",
        ),
        (NAME, (401, "RepoNotFound"), "HF_TOKEN .* hf auth login"),
        (NAME, (503, ""), "answered 503 .* try again later"),
        ("hf:someone/else", None, "has no repository someone/else"),
        (f"{NAME}@v7", None, "has no revision v7 of someone/flowers"),
    ],
)
def test_what_the_hub_refuses(
    hub: Hub, name: str, refusal: tuple[int, str] | None, message: str
) -> None:
    hub.refusal = refusal
    with pytest.raises(WeightsError, match=f"^{name}: .*{message}") as error:
        load_weights(name)
    assert f"give the weights file instead of {name}" in str(error.value)


def test_no_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    point_at("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(WeightsError, match=rf"^{NAME}: config.json .* cannot be fetched from .*:9"):
        weights_info(NAME)
    assert not list(cache.rglob("config.json"))
