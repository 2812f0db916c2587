"""What all launchers share: they are clean shell, and the documents' commands run."""

import subprocess
import sys
from pathlib import Path

import pytest
from documents import DOCUMENTS, blocks, needs_fakes
from fakes import ROOT, Fakes, Reply

SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), ROOT / "launch/slurm.sbatch"])
BLOCKS = sorted({block for name in DOCUMENTS for block in blocks(name, "sh") if needs_fakes(block)})


def test_the_scripts_are_clean() -> None:
    assert len(SCRIPTS) == 7
    done = subprocess.run(
        [Path(sys.executable).parent / "shellcheck", *SCRIPTS],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_every_launcher_is_shown() -> None:
    for name in ("tpu_pod.sh", "tpu_gce.sh", "gke.sh", "Dockerfile", "slurm.sbatch"):
        assert any(f"launch/{name}" in block for block in BLOCKS), name


@pytest.mark.parametrize("block", BLOCKS)
def test_the_documents_commands_run(block: str, tmp_path: Path) -> None:
    """With fakes for what is not here; each must be called, and end well."""
    fakes = Fakes(tmp_path / "fakes", ("gcloud", "kubectl", "docker", "sbatch", "uv"))
    fakes.on("queued-resources describe", Reply(out="ACTIVE\n"))
    fakes.on("list-instances .*instanceStatus", Reply(out="b0-x\tRUNNING\n" * 4))
    fakes.on("list-instances", Reply(out="".join(f"b0-{number}\n" for number in range(4))))
    fakes.on("agent-worker-number", Reply(script='echo "jaxcls-worker ${3#b0-} $3"'))
    fakes.on("tpu_worker.sh status", Reply(out="jaxcls-status worker-0 exited 0\n"))
    fakes.on("terminalState", Reply(out="Completed\n"))
    script = tmp_path / "commands.sh"
    script.write_text("set -e\n" + block)
    result = fakes.run(str(script))
    assert result.returncode == 0, result.stderr
    for launcher, command in (
        ("tpu_pod.sh", "gcloud compute tpus"),
        ("tpu_gce.sh", "gcloud compute instance-groups"),
        ("gke.sh", "kubectl "),
    ):
        called = any(call.startswith(command) for call in fakes.calls())
        assert called == (launcher in block)
    if "launch/slurm.sbatch" in block:
        [call] = [call for call in fakes.calls() if call.startswith("sbatch")]
        options = call.partition("launch/slurm.sbatch ")[2].split()
        fakes = Fakes(tmp_path / "slurm", ("srun",))
        task = "1" if "--array" in call else ""
        dry = fakes.run("launch/slurm.sbatch", "--dry-run", *options, SLURM_ARRAY_TASK_ID=task)
        assert dry.returncode == 0, dry.stderr
        assert f" {'sweep' if task else 'train'} configs/" in dry.stdout
