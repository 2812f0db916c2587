import importlib.metadata
import importlib.util

import pytest

from jaxcls.measure.gpus import GPUS, prepare_gpu_compiler, target_config
from jaxcls.measure.topologies import Topology, find_topology
from jaxcls.measure.tpus import TPUS, prepare_tpu_compiler
from jaxcls.system.errors import UserError


def test_known_topologies_name_their_chip() -> None:
    assert find_topology("v5e:16x16").chip is TPUS["v5e"]
    assert find_topology("v4:2x2x2") == Topology(platform="tpu", chip=TPUS["v4"], shape="v4:2x2x2")


@pytest.mark.parametrize(
    ("text", "shape"),
    [("h200", "1x1x1"), ("h200:", "1x1x1"), ("h200:8", "1x1x8"), ("h200:2x8", "1x2x8")],
)
def test_gpus_are_counted_by_host(text: str, shape: str) -> None:
    assert find_topology(text) == Topology(platform="cuda", chip=GPUS["h200"], shape=shape)


@pytest.mark.parametrize("topology", ["v5e", "v5e:3x3", "v9:2x2", "", "h300:8", "gpu"])
def test_an_unknown_topology_lists_the_known(topology: str) -> None:
    with pytest.raises(UserError) as caught:
        find_topology(topology)
    assert repr(topology) in str(caught.value)
    for name, chip in TPUS.items():
        assert f"{name}:{{{','.join(chip.shapes)}}}" in str(caught.value)
    assert "h200:[HOSTSx]GPUS" in str(caught.value)


@pytest.mark.parametrize("topology", ["h200:0", "h200:8x", "h200:2x2x2", "h200:-1"])
def test_a_wrong_number_of_gpus_is_named(topology: str) -> None:
    with pytest.raises(UserError, match=r"give the number of GPUs, h200:8"):
        find_topology(topology)


def test_a_kind_is_named_in_any_case_and_by_its_beginning() -> None:
    assert find_topology("H200:8").shape == "1x1x8"
    assert find_topology("V5e:2x2").shape == "v5e:2x2"
    with pytest.raises(UserError, match="did you mean 'a100-40' or 'a100-80'"):
        find_topology("a100:8")


def test_too_many_or_too_old_gpus_are_refused() -> None:
    with pytest.raises(UserError, match="more than 4096 GPUs"):
        find_topology("h200:1000x1000")
    with pytest.raises(UserError, match=r"v100 has compute capability 7\.0, .* needs 7\.5"):
        find_topology("v100:8")


def test_a_missing_compiler_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--extra tpu-compiler"):
        prepare_tpu_compiler()


@pytest.mark.skipif(
    importlib.util.find_spec("jax_plugins") is not None, reason="the compiler is installed"
)
def test_the_missing_compiler_of_gpus_names_the_extra() -> None:
    with pytest.raises(UserError, match="--extra gpu-compiler"):
        prepare_gpu_compiler()


def test_a_compiler_of_another_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"jax": "0.11.2", "jax-cuda13-plugin": "0.11.1"}
    monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
    with pytest.raises(UserError, match=r"0\.11\.1\) is not of the version of JAX \(0\.11\.2\)"):
        prepare_gpu_compiler()


@pytest.mark.parametrize("name", GPUS)
def test_a_gpu_is_described_for_the_compiler(name: str) -> None:
    text, gpu = target_config(GPUS[name]), GPUS[name]
    assert text.count("{") == text.count("}")
    assert f"core_count: {gpu.multiprocessors} " in text
    assert f"major: {gpu.capability[0]} minor: {gpu.capability[1]} " in text
    assert gpu.bandwidth < 1e13 < gpu.bfloat16_rate < 1e16
