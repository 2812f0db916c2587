"""The scopes in the compiled step, and a profile of a run."""

import re
from pathlib import Path

import jax
import pytest

from jaxcls.config import Config
from jaxcls.distributed.mesh import make_mesh
from jaxcls.system.errors import UserError
from jaxcls.training.build import build_training
from jaxcls.training.loop import Outcome, train


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
