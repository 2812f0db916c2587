"""What only a GPU can show; run it with JAXCLS_TEST_PLATFORMS=cuda,cpu (see README.md here)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from depthwise_kernel import by_kernel as depthwise_by_kernel
from depthwise_kernel import gradients_by_kernel as depthwise_gradients_by_kernel
from jax import Array

from jaxcls.config import Config
from jaxcls.distributed.mesh import make_mesh, split_by_example
from jaxcls.models.channel_sums import sum_by_compiler, sum_by_kernel
from jaxcls.models.depthwise import shifted, shifted_gradients
from jaxcls.models.gate import gate, gate_by_kernel, gate_gradients, gradients_by_kernel
from jaxcls.models.layers import silu
from jaxcls.training.build import build_training

pytestmark = [
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning"),
]


def draw(*shape: int, dtype: Any = jnp.float32, seed: int = 0) -> Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@pytest.mark.parametrize("shape", [(64, 56, 56, 24), (32, 14, 14, 672), (7, 5, 5, 130)])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_kernel_of_sums(shape: tuple[int, ...], dtype: Any) -> None:
    def terms(x: Array, grad: Array, mean: Array) -> tuple[Array, Array]:
        return silu(x - mean), grad * (x - mean)

    mesh = make_mesh(jax.devices()[:1])
    images = [draw(*shape, dtype=dtype, seed=seed) for seed in range(2)]
    vector = draw(1, shape[-1])
    with jax.set_mesh(mesh):
        sums = jax.jit(
            lambda *of: sum_by_kernel(terms, of[:2], of[2:], groups=1, mesh=mesh.abstract_mesh)
        )(*images, vector)
    expected = sum_by_compiler(terms, images, [vector], groups=1)
    for actual, wanted in zip(sums, expected, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=2e-3, atol=0.05)


@pytest.mark.parametrize(("channels", "width"), [(672, 28), (1152, 48), (70, 3)])
def test_the_kernels_of_the_gate(channels: int, width: int) -> None:
    mesh, dtype = make_mesh(jax.devices()[:1]), jnp.dtype("float32")
    means, grad = draw(40, channels), draw(40, channels, seed=1)
    params = {
        "reduce": (draw(channels, width) / channels**0.5, draw(width)),
        "expand": (draw(width, channels) / width**0.5, draw(channels)),
    }
    options: dict[str, Any] = {"dtype": dtype, "mesh": mesh.abstract_mesh}
    with jax.set_mesh(mesh):
        gates = jax.jit(lambda means, params: gate_by_kernel(means, params, silu, **options))(
            means, params
        )
        gradients = jax.jit(
            lambda means, params, grad: gradients_by_kernel(
                means, params, silu, grad, pixels=49, **options
            )
        )(means, params, grad)
    with jax.default_matmul_precision("highest"):
        wanted = gate(means, params, silu, dtype=dtype)
        expected = gate_gradients(means, params, silu, grad, pixels=49, dtype=dtype)
    np.testing.assert_allclose(gates, wanted, rtol=1e-4, atol=1e-5)
    jax.tree.map(
        lambda actual, of: np.testing.assert_allclose(actual, of, rtol=1e-3, atol=1e-4),
        gradients,
        expected,
    )


@pytest.mark.parametrize(
    ("shape", "size", "stride"),
    [
        ((32, 14, 14, 672), 3, 1),
        ((16, 19, 19, 96), 3, 2),
        ((7, 5, 9, 70), 5, 2),
        ((8, 28, 28, 40), 5, 1),
    ],
)
@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 1e-2)])
def test_the_kernels_of_the_depthwise_convolution(
    shape: tuple[int, ...], size: int, stride: int, padding: Any, dtype: str, tolerance: float
) -> None:
    """The sums of both forms are float32, and only the results are rounded."""
    options: dict[str, Any] = {"stride": stride, "padding": padding}
    x, kernel = draw(*shape, dtype=dtype), draw(size, size, 1, shape[-1], dtype=dtype, seed=1)
    expected = shifted(x, kernel, **options)
    grad = draw(*expected.shape, dtype=dtype, seed=2)
    wanted = (expected, *shifted_gradients(x, kernel, grad, **options))
    results = (
        depthwise_by_kernel(x, kernel, **options),
        *depthwise_gradients_by_kernel(x, kernel, grad, **options),
    )
    for actual, of in zip(results, wanted, strict=True):
        assert actual.dtype == of.dtype
        scale = float(jnp.max(jnp.abs(of)))
        np.testing.assert_allclose(
            actual.astype("float32"), of.astype("float32"), rtol=tolerance, atol=tolerance * scale
        )


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.05)])
@pytest.mark.parametrize("name", ["tiny", "tiny_resnet"])
def test_two_steps_equal_those_of_a_cpu(
    tiny_config: Config, name: str, dtype: str, tolerance: float
) -> None:
    """With the kernels of Triton and without; the second step uses what the first updated."""
    model = dataclasses.replace(tiny_config.model, name=name)
    config = dataclasses.replace(tiny_config, model=model, compute_dtype=dtype)
    results, start, metrics = [], None, {}
    for devices in (jax.devices("cpu")[:1], jax.devices("gpu")[:1]):
        mesh = make_mesh(devices)
        training = build_training(config, num_classes=10, num_examples=1000, mesh=mesh)
        start = jax.device_get(training.init()) if start is None else start
        state = jax.device_put(start, training.shardings)
        generator = np.random.default_rng(0)
        batch = {
            "images": generator.integers(256, size=(32, 8, 8, 3), dtype=np.uint8),
            "sizes": np.full((32, 2), 8, np.int32),
            "labels": generator.integers(10, size=32, dtype=np.int32),
        }
        batch = jax.device_put(batch, split_by_example(mesh))
        (step,) = training.steps.values()
        with jax.default_matmul_precision("highest"):
            for _ in range(2):
                state, metrics = step(state, batch)
        trees = {"params": state.params, "statistics": state.batch_stats, "averages": state.ema}
        results.append(jax.device_get((metrics, trees)))
    (metrics, trees), (of_gpu, trees_of_gpu) = results
    for key in ("loss", "grad_norm"):
        np.testing.assert_allclose(of_gpu[key], metrics[key], rtol=tolerance)
    jax.tree.map(
        lambda actual, wanted: np.testing.assert_allclose(
            actual, wanted, rtol=tolerance, atol=tolerance
        ),
        trees_of_gpu,
        trees,
    )
