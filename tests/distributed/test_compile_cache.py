import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from jaxcls.config import Config, encode
from jaxcls.distributed.compile_cache import keep_compiled
from jaxcls.models import registry
from jaxcls.system.caches import cache_dir

COMPILE = """
import json, sys
import jax
from jaxcls.distributed.compile_cache import keep_compiled
from jaxcls.config import decode
from jaxcls.models import registry
from jaxcls.models.efficientnet import ModelSpec, BlockSpec
from jaxcls.distributed.mesh import make_mesh
from jaxcls.training.build import build_training
keep_compiled()
registry.SPECS["tiny"] = eval(sys.argv[1])
config = decode(json.loads(sys.argv[2]))
training = build_training(config, num_classes=10, num_examples=1000, mesh=make_mesh())
print(training.compile_step().compile_seconds)
"""


def compile_seconds(home: Path, config: Config) -> tuple[float, str]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(home), "XLA_FLAGS": ""}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            COMPILE,
            repr(registry.model_spec("tiny")),
            json.dumps(encode(config)),
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1]), done.stderr


@pytest.mark.slow
def test_the_second_start_compiles_in_a_fifth_and_a_corrupt_cache_compiles_again(
    tmp_path: Path, tiny_config: Config
) -> None:
    first, _ = compile_seconds(tmp_path, tiny_config)
    folder = tmp_path / "jaxcls/compiled"
    assert folder.stat().st_mode & 0o777 == 0o700
    entries = [path for path in folder.iterdir() if path.name.endswith("-cache")]
    assert entries
    second, _ = compile_seconds(tmp_path, tiny_config)
    assert second <= first / 5, (first, second)
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:100])
    third, err = compile_seconds(tmp_path, tiny_config)
    assert third > first / 5
    assert "Error reading persistent compilation cache" in err


@pytest.fixture
def no_cache() -> Iterator[None]:
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.usefixtures("no_cache")
def test_a_folder_that_others_may_write_to_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = cache_dir() / "compiled"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with caplog.at_level(logging.WARNING, "jaxcls"):
        keep_compiled()
    assert jax.config.jax_compilation_cache_dir is None
    assert "other users may write" in caplog.text


@pytest.mark.usefixtures("no_cache")
def test_jaxs_own_settings_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    keep_compiled()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", False)
    keep_compiled()
    jax.config.update("jax_enable_compilation_cache", True)
    assert jax.config.jax_compilation_cache_dir is None
    assert not (cache_dir() / "compiled").exists()
