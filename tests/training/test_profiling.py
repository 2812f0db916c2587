"""The scopes in the compiled step, and a profile of a run."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jax._src.profiler import _profile_state

from jaxcls.config import Config
from jaxcls.distributed.mesh import make_mesh
from jaxcls.system.errors import UserError
from jaxcls.training.build import build_training
from jaxcls.training.loop import Outcome, train
from jaxcls.training.profiling import SKIPPED_STEPS, Profile


def test_operations_of_the_compiled_step_carry_its_scopes(tiny_config: Config) -> None:
    mesh = make_mesh(jax.devices()[:1])
    training = build_training(tiny_config, num_classes=10, num_examples=1442, mesh=mesh)
    text = training.compile_step().program.as_text()
    names = re.findall(r'op_name="([^"]*)"', text)
    for scope in ("augment", "model", "loss", "update"):
        inside = re.compile(rf"[/(]{scope}[/)]")
        assert any(inside.search(name) for name in names), scope


def test_a_profile_leaves_a_trace_and_the_training_as_it_is(
    tiny_run: tuple[Path, Outcome], tiny_config: Config, tmp_path: Path
) -> None:
    outcome = train(tiny_config, tmp_path, mesh=make_mesh(jax.devices()[:1]), profile_steps=2)
    assert outcome == tiny_run[1]
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert not (tiny_run[0] / "profile").exists()


@pytest.mark.parametrize(
    ("run", "steps", "message"),
    [("x", -1, "--profile: must be at least 0"), ("gs://b/x", 2, "--profile: .*local")],
)
def test_a_profile_that_cannot_be_made_is_refused(
    run: str, steps: int, message: str, tiny_config: Config
) -> None:
    with pytest.raises(UserError, match=message):
        train(tiny_config, run, profile_steps=steps)


@pytest.fixture
def a_failed_trace() -> Iterator[None]:
    """JAX itself does not forget a trace that it could not write."""
    yield
    _profile_state.reset()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


@pytest.mark.usefixtures("a_failed_trace")
def test_a_folder_that_cannot_be_used_costs_the_profile_and_not_the_training(
    tiny_run: tuple[Path, Outcome],
    tiny_config: Config,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "profile").write_text("a file")
    outcome = train(tiny_config, tmp_path, mesh=make_mesh(jax.devices()[:1]), profile_steps=2)
    assert outcome == tiny_run[1]
    (warning,) = warnings(caplog)
    assert warning.startswith(f"--profile: no profile in {tmp_path / 'profile'} (")
    assert warning.endswith("profile is not a directory); the training continues without it")


FAILURES = {
    "full": jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: No space left on device"),
    "forbidden": PermissionError(13, "Permission denied"),
    "two at once": RuntimeError("Profile has already been started."),
}


@pytest.mark.parametrize("method", ["start_trace", "stop_trace"])
@pytest.mark.parametrize("kind", FAILURES)
@pytest.mark.parametrize("interrupted", [False, True])
def test_a_profile_that_fails_is_one_warning_and_hides_no_other_error(
    method: str,
    kind: str,
    interrupted: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise FAILURES[kind]

    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: None)
    monkeypatch.setattr(jax.profiler, method, fail)

    def take_steps() -> None:
        with Profile(Path("runs/x/profile"), start=4, steps=2) as profile:
            for step in range(5, 9 + SKIPPED_STEPS):
                profile.before(step)
                if interrupted and step == 5 + SKIPPED_STEPS:
                    raise KeyError("the first error")
                profile.after(step, None)

    if interrupted:
        with pytest.raises(KeyError, match="the first error"):
            take_steps()
    else:
        take_steps()
    (warning,) = warnings(caplog)
    assert warning.startswith("--profile: no profile in runs/x/profile (")
    assert (FAILURES[kind].args[-1]) in warning
