"""slurm.sbatch against recording srun, scontrol and gcloud."""

import subprocess
from pathlib import Path

import pytest
from fakes import ROOT, Fakes, Reply

CONFIG = "configs/imagenet/kerascv_b0.py"
TRAIN = f"srun --kill-on-bad-exit=0 --wait=300 --cpus-per-task=1 true train {CONFIG}"


@pytest.fixture
def slurm(tmp_path: Path) -> Fakes:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    return Fakes(tmp_path / "fakes", ("srun", "scontrol"))


def job(slurm: Fakes, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs the script as sbatch would, in the folder that holds configs/."""
    own = {"SLURM_JOB_ID": "7", "JAXCLS": "true", **variables}
    script = str(ROOT / "launch/slurm.sbatch")
    return slurm.run(script, *arguments, cwd=slurm.folder.parent, **own)


def test_a_training_that_ends_is_done(slurm: Fakes) -> None:
    assert job(slurm, CONFIG, "--seed", "1").returncode == 0
    assert slurm.calls() == [f"{TRAIN} --seed 1"]


def test_a_stop_puts_the_job_back_into_the_queue(slurm: Fakes) -> None:
    slurm.on("srun", Reply(status=75))
    result = job(slurm, CONFIG)
    assert result.returncode == 75
    assert slurm.calls() == [TRAIN, "scontrol requeue 7"]
    assert "stopped after a save" in result.stderr


def test_a_mistake_is_not_started_again(slurm: Fakes) -> None:
    slurm.on("srun", Reply(err="jaxcls: no such data\n", status=2))
    result = job(slurm, CONFIG)
    assert result.returncode == 2
    assert slurm.calls() == [TRAIN]
    assert "a mistake that a restart cannot fix" in result.stderr


def test_crashes_are_started_again_a_few_times(slurm: Fakes) -> None:
    slurm.on("srun", Reply(status=1))
    for _ in range(2):
        assert job(slurm, CONFIG, MAX_RESTARTS="2").returncode == 1
    assert slurm.calls() == [TRAIN, "scontrol requeue 7"] * 2
    result = job(slurm, CONFIG, MAX_RESTARTS="2")
    assert slurm.calls()[4:] == [TRAIN]
    assert "no restart is left (MAX_RESTARTS=2)" in result.stderr


def test_stops_do_not_count_as_crashes(slurm: Fakes) -> None:
    slurm.on("srun", *[Reply(status=75)] * 5, Reply(status=1))
    for _ in range(6):
        job(slurm, CONFIG, MAX_RESTARTS="1")
    assert slurm.calls() == [TRAIN, "scontrol requeue 7"] * 6


@pytest.mark.parametrize(
    ("data_dir", "copy"),
    [
        ("/shared/tfds", "rsync --archive /shared/tfds/ /local/jaxcls-data/"),
        (
            "gs://bucket/tfds",
            "gcloud storage rsync --recursive gs://bucket/tfds /local/jaxcls-data",
        ),
    ],
)
def test_data_are_copied_to_every_node_first(slurm: Fakes, data_dir: str, copy: str) -> None:
    variables = {"SLURM_JOB_NUM_NODES": "2", "LOCAL_DISK": "/local"}
    assert job(slurm, "--data-dir", data_dir, "--stage", CONFIG, **variables).returncode == 0
    once = "srun --ntasks=2 --ntasks-per-node=1"
    assert slurm.calls() == [
        f"{once} mkdir -p /local/jaxcls-data",
        f"{once} {copy}",
        f"{TRAIN} --data.data-dir /local/jaxcls-data",
    ]


def test_data_that_cannot_be_copied_end_the_job(slurm: Fakes) -> None:
    slurm.on("rsync", Reply(status=1))
    result = job(slurm, "--data-dir", "/shared/tfds", "--stage", CONFIG)
    assert result.returncode == 1
    assert "cannot copy /shared/tfds to the nodes" in result.stderr
    assert TRAIN not in slurm.calls()


def test_a_dry_run_prints_the_commands_and_runs_none(slurm: Fakes) -> None:
    result = job(slurm, "--data-dir", "/shared/tfds", "--dry-run", CONFIG, SLURM_JOB_ID="")
    assert result.returncode == 0
    assert result.stdout.splitlines() == [f"{TRAIN} --data.data-dir /shared/tfds"]
    assert slurm.calls() == []


def test_a_dry_run_of_a_sweep_prints_one_task(slurm: Fakes) -> None:
    sweep = TRAIN.replace("true train", "true sweep")
    result = job(slurm, "--dry-run", "--sweep", CONFIG, "--seed", "1", SLURM_JOB_ID="")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [f"{sweep} --seed 1 --index N"]
    result = job(slurm, "--dry-run", "--sweep", CONFIG, **ARRAY)
    assert result.stdout.splitlines() == [f"{sweep} --index 3"]
    assert slurm.calls() == []


def test_options_in_every_spelling(slurm: Fakes) -> None:
    for options in (["--data-dir", "/my sets/"], ["--data-dir=/my sets", "--"]):
        result = job(slurm, "--dry-run", *options, CONFIG, SLURM_JOB_ID="")
        assert result.stdout.split("data-dir ")[1] == "/my\\ sets\n"
    result = job(slurm, "--dry-run", "--data-dir=~/sets", CONFIG)
    assert result.stdout.endswith(f" {slurm.folder}/sets\n")


ARRAY = {"SLURM_JOB_ID": "100", "SLURM_ARRAY_JOB_ID": "100", "SLURM_ARRAY_TASK_ID": "3"}


@pytest.mark.parametrize("status", [75, 1])
def test_a_task_of_an_array_is_put_back_alone(slurm: Fakes, status: int) -> None:
    """The number of one of them is that of the whole array."""
    slurm.on("srun", Reply(status=status))
    assert job(slurm, CONFIG, **ARRAY).returncode == status
    assert slurm.calls() == [TRAIN, "scontrol requeue 100_3"]


def test_tasks_of_an_array_count_their_own_crashes(slurm: Fakes) -> None:
    slurm.on("srun", Reply(status=1))
    for task in ("3", "4"):
        job(slurm, CONFIG, **(ARRAY | {"SLURM_ARRAY_TASK_ID": task}), MAX_RESTARTS="1")
    requeued = [call for call in slurm.calls() if "requeue" in call]
    assert requeued == ["scontrol requeue 100_3", "scontrol requeue 100_4"]
    job(slurm, CONFIG, **ARRAY, MAX_RESTARTS="1")
    assert [call for call in slurm.calls() if "requeue" in call] == requeued


def test_each_task_of_an_array_trains_a_run_of_its_own(slurm: Fakes) -> None:
    job(slurm, CONFIG, "--seed", "%a", "--workdir", "runs/%a", **ARRAY)
    job(slurm, "--sweep", "--data-dir", "/sets", CONFIG, "--seed", "1", **ARRAY)
    sweep = TRAIN.replace("true train", "true sweep")
    assert slurm.calls() == [
        f"{TRAIN} --seed 3 --workdir runs/3",
        f"{sweep} --seed 1 --index 3 --data.data-dir /sets",
    ]
    job(slurm, CONFIG, "--seed", "%a")  # in no array it is a mistake for jaxcls to name
    assert slurm.calls()[-1] == f"{TRAIN} --seed %a"


def test_a_job_that_cannot_be_put_back_says_so(slurm: Fakes) -> None:
    slurm.on("srun", Reply(status=75))
    slurm.on("scontrol", Reply(err="Requested operation is presently disabled\n", status=1))
    result = job(slurm, CONFIG)
    assert result.returncode == 1
    assert "scontrol cannot put job 7 back into the queue" in result.stderr


def test_a_run_resumes_by_its_folder(slurm: Fakes) -> None:
    run = slurm.folder.parent / "runs/x"
    run.mkdir(parents=True)
    (run / "config.json").touch()
    assert job(slurm, "runs/x").returncode == job(slurm, "gs://bucket/x").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        ((), {}, "give a config"),
        (("configs/none.py",), {}, "there is no such config"),
        (("--stage", CONFIG), {}, "--stage: also give --data-dir"),
        (("--data-dir",), {}, "--data-dir: give a value"),
        (("--data-dir", "--stage", CONFIG), {}, "--data-dir: give a value"),
        (("--data-dir", "", CONFIG), {}, "--data-dir: give a value, got ''"),
        (("--data-dir=", CONFIG), {}, "--data-dir: give a value, got ''"),
        (("--stge", CONFIG), {}, "unknown option --stge"),
        (("--stage=true", CONFIG), {}, "unknown option --stage=true"),
        (("--sweep", CONFIG), {}, "--sweep: needs a job array"),
        ((CONFIG,), {"SLURM_JOB_ID": ""}, "start it with sbatch"),
        ((CONFIG,), {"JAXCLS": "no-such-jaxcls"}, "there is no no-such-jaxcls"),
    ],
)
def test_mistakes_are_named(
    slurm: Fakes, arguments: tuple[str, ...], variables: dict[str, str], message: str
) -> None:
    result = job(slurm, *arguments, **variables)
    assert result.returncode == 2
    assert message in result.stderr
    assert slurm.calls() == []
