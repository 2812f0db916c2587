from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcls.config import OptimizerConfig
from jaxcls.config.decoding import ConfigError
from jaxcls.training.optimizers import kernels_only, make_optimizer, optimizer_names

Tree = dict[str, Any]

PARAMS: Tree = {
    "conv": {"kernel": np.array([[1.0, -2.0], [0.5, 3.0]], np.float32)},
    "norm": {"bias": np.array([0.5, -1.0], np.float32), "scale": np.array([1.0, 2.0], np.float32)},
}
GRADS: Tree = {
    "conv": {"kernel": np.array([[0.3, 0.1], [-0.2, 0.4]], np.float32)},
    "norm": {"bias": np.array([0.2, 0.1], np.float32), "scale": np.array([-0.1, 0.3], np.float32)},
}


def rate(step: Any) -> Any:
    """0.1, 0.05, 0.0333, ..."""
    return 0.1 / (1 + step)


def take_steps(optimizer: OptimizerConfig, num_steps: int, grads: Tree = GRADS) -> Tree:
    """Parameters after steps with the same gradients."""
    tx = make_optimizer(optimizer, rate)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, PARAMS)
    state = tx.init(params)
    for _ in range(num_steps):
        params, state = step(params, state)
    return params


def assert_close(actual: Tree, expected: Tree, rtol: float = 1e-6) -> None:
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=rtol, atol=1e-7), actual, expected
    )


def error_of(**fields: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        make_optimizer(OptimizerConfig(**fields), rate)
    return str(caught.value)


@pytest.mark.parametrize("name", optimizer_names())
def test_every_optimizer_takes_a_step_and_decays_kernels_only(name: str) -> None:
    tx = make_optimizer(OptimizerConfig(name=name), rate)
    decaying = make_optimizer(OptimizerConfig(name=name, weight_decay=0.5), rate)

    # A second step, because some optimizers only look around in the first.
    def two_steps(tx: optax.GradientTransformation) -> Any:
        state = tx.init(PARAMS)
        first, state = tx.update(GRADS, state, PARAMS)
        second, _ = tx.update(GRADS, state, PARAMS)
        return jax.tree.map(lambda a, b: a + b, first, second)

    plain, decayed = jax.jit(lambda: (two_steps(tx), two_steps(decaying)))()
    for leaf, param in zip(jax.tree.leaves(plain), jax.tree.leaves(PARAMS), strict=True):
        assert leaf.shape == param.shape
        assert leaf.dtype == np.float32
        assert np.isfinite(leaf).all()
        assert np.any(leaf != 0)
    assert_close(decayed["norm"], plain["norm"])
    if name != "lion":  # the sign may stay the same; its decay has a test of its own
        assert not np.array_equal(decayed["conv"]["kernel"], plain["conv"]["kernel"])


def test_the_known_optimizers_are_those_that_take_a_schedule() -> None:
    names = optimizer_names()
    wanted = {"sgd", "rmsprop", "adam", "adamw", "nadamw", "lamb", "lars", "lion", "adafactor"}
    assert wanted <= set(names)
    assert not {"lbfgs", "noisy_sgd", "rprop", "sm3", "scale_by_rprop", "chain"} & set(names)


def test_only_what_has_two_axes_or_more_is_a_kernel() -> None:
    assert kernels_only(PARAMS) == {
        "conv": {"kernel": True},
        "norm": {"bias": False, "scale": False},
    }
    assert kernels_only({"depthwise": np.zeros((3, 3, 1, 8)), "scalar": np.zeros(())}) == {
        "depthwise": True,
        "scalar": False,
    }


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_sgd_is_the_formula_with_coupled_decay_of_kernels(nesterov: bool) -> None:
    momentum, decay = 0.9, 0.01
    expected = jax.tree.map(np.float64, PARAMS)
    trace = jax.tree.map(np.zeros_like, expected)
    for step in range(3):
        for group, name in (("conv", "kernel"), ("norm", "bias"), ("norm", "scale")):
            gradient = (
                GRADS[group][name] + (decay if name == "kernel" else 0) * expected[group][name]
            )
            trace[group][name] = momentum * trace[group][name] + gradient
            change = gradient + momentum * trace[group][name] if nesterov else trace[group][name]
            expected[group][name] = expected[group][name] - 0.1 / (1 + step) * change
    optimizer = OptimizerConfig(
        name="sgd", options={"momentum": momentum, "nesterov": nesterov}, weight_decay=decay
    )
    assert_close(take_steps(optimizer, 3), expected)


def test_rmsprop_is_the_formula_of_the_reference_with_coupled_decay_of_kernels() -> None:
    options: dict[str, bool | int | float | str] = {"decay": 0.9, "momentum": 0.9, "eps": 1e-3}
    expected = jax.tree.map(np.float64, PARAMS)
    square, trace = (jax.tree.map(np.zeros_like, expected) for _ in range(2))
    for step in range(2):
        for group, name in (("conv", "kernel"), ("norm", "bias"), ("norm", "scale")):
            gradient = (
                GRADS[group][name] + (0.02 if name == "kernel" else 0) * expected[group][name]
            )
            square[group][name] = 0.9 * square[group][name] + 0.1 * gradient**2
            scaled = gradient / np.sqrt(square[group][name] + 1e-3)
            # optax puts the learning rate into the trace, as TensorFlow does.
            trace[group][name] = 0.9 * trace[group][name] + 0.1 / (1 + step) * scaled
            expected[group][name] = expected[group][name] - trace[group][name]
    optimizer = OptimizerConfig(name="rmsprop", options=options, weight_decay=0.02)
    assert_close(take_steps(optimizer, 2), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "nadamw", "lion", "adamaxw"])
def test_decoupled_decay_shrinks_kernels_by_rate_times_decay(name: str) -> None:
    plain = take_steps(OptimizerConfig(name=name), 1)
    decayed = take_steps(OptimizerConfig(name=name, weight_decay=0.5), 1)
    shrunk = plain["conv"]["kernel"] - 0.1 * 0.5 * PARAMS["conv"]["kernel"]
    assert_close(decayed, {"conv": {"kernel": shrunk}, "norm": plain["norm"]})


def test_without_weight_decay_adamw_is_adam_whatever_its_own_default() -> None:
    assert_close(
        take_steps(OptimizerConfig(name="adamw"), 3), take_steps(OptimizerConfig(name="adam"), 3)
    )


def test_clipping_scales_the_gradients_to_the_norm_before_the_decay() -> None:
    norm = np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(GRADS)))
    assert norm > 0.1
    clipped = jax.tree.map(lambda g: g * 0.1 / norm, GRADS)
    decayed = {
        "conv": {"kernel": clipped["conv"]["kernel"] + 0.2 * PARAMS["conv"]["kernel"]},
        "norm": clipped["norm"],
    }
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, PARAMS, decayed)
    optimizer = OptimizerConfig(name="sgd", clip_norm=0.1, weight_decay=0.2)
    assert_close(take_steps(optimizer, 1), expected)


def test_gradients_below_the_norm_are_left_as_they_are() -> None:
    assert_close(
        take_steps(OptimizerConfig(name="sgd", clip_norm=10.0), 1),
        take_steps(OptimizerConfig(name="sgd"), 1),
    )


def test_options_reach_the_optimizer() -> None:
    plain = take_steps(OptimizerConfig(name="adamw"), 1)
    damped = take_steps(OptimizerConfig(name="adamw", options={"eps": 1.0}), 1)
    kernel, gradient = PARAMS["conv"]["kernel"], GRADS["conv"]["kernel"]
    np.testing.assert_allclose(plain["conv"]["kernel"], kernel - 0.1 * np.sign(gradient), rtol=1e-5)
    np.testing.assert_allclose(
        damped["conv"]["kernel"], kernel - 0.1 * gradient / (np.abs(gradient) + 1), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "near"), [("adamwx", "adamw"), ("SGD", None), ("rmspro", "rmsprop"), ("lbfgs", None)]
)
def test_an_unknown_optimizer_is_named_with_the_nearest_and_all_known(
    name: str, near: str | None
) -> None:
    message = error_of(name=name)
    assert message.startswith(f"optimizer.name: unknown optimizer {name!r}")
    assert near is None or f"did you mean {near!r}?" in message
    assert f"known: {', '.join(optimizer_names())}" in message


def test_an_unknown_option_is_named_with_the_nearest() -> None:
    assert error_of(name="sgd", options={"momentun": 0.9}) == (
        "optimizer.options: sgd has no option 'momentun'; did you mean 'momentum'?; it has "
        "momentum, nesterov, accumulator_dtype\n"
        "if the config sets it, the command line removes it with "
        "--optimizer.options.momentun None"
    )
    message = error_of(name="adamw", options={"mask": True, "nesterov": True, "q": 1})
    assert message.startswith(
        "optimizer.options: adamw has no option 'mask' and no option 'q'; it has b1, b2, "
    )
    assert message.endswith(
        "if the config sets them, the command line removes them with "
        "--optimizer.options.mask None --optimizer.options.q None"
    )


@pytest.mark.parametrize("name", ["sgd", "adamw", "novograd"])
@pytest.mark.parametrize("option", ["learning_rate", "weight_decay"])
def test_rate_and_decay_have_fields_of_their_own(name: str, option: str) -> None:
    message = error_of(name=name, options={option: 0.1})
    assert message == f"optimizer.options: set {option!r} as optimizer.{option}"


def test_an_option_that_optax_refuses_is_an_error_of_the_config() -> None:
    message = error_of(name="adamw", options={"mu_dtype": 1.0})
    assert message.startswith("optimizer.options: adamw refuses them: ")
    assert "1.0" in message


def test_a_type_by_name_is_an_option_and_another_text_is_not() -> None:
    options = {"mu_dtype": "bfloat16", "b1": 0.8}
    optimizer = make_optimizer(OptimizerConfig(name="adamw", options=options), lambda _: 0.1)
    state = optimizer.init({"kernel": jnp.zeros((2, 2))})
    assert "bfloat16" in {str(leaf.dtype) for leaf in jax.tree.leaves(state)}
    for option, value in [("mu_dtype", "bfloat17"), ("b1", "0.8")]:
        config = OptimizerConfig(name="adamw", options={option: value})
        with pytest.raises(ConfigError, match=r"^optimizer\.options: .*"):
            make_optimizer(config, lambda _: 0.1)
