"""tpu_pod.sh against a gcloud that records its calls and fails as Cloud TPU does."""

import tarfile
from pathlib import Path

import pytest
from fakes import Fakes, Reply, words_of_remote_command

PLACE = "--zone=us-west4-a --project=p"
CONFIG = "configs/imagenet/kerascv_b0.py"
OPTIONS = [
    "--name",
    "b0",
    "--accelerator-type",
    "v5litepod-16",
    "--runtime-version",
    "v2-alpha-tpuv5-lite",
    "--zone",
    "us-west4-a",
    "--project",
    "p",
]
TRAINING = ("--", CONFIG, "--workdir", "gs://bucket/run")

RESOURCES = "gcloud compute tpus queued-resources"
VM = "gcloud compute tpus tpu-vm"
DESCRIBE = f"{RESOURCES} describe b0 {PLACE} --format=value(state.state)"
EXPLAIN = f"{RESOURCES} describe b0 {PLACE} --format=yaml(state)"
CREATE = (
    f"{RESOURCES} create b0 --node-id=b0 --accelerator-type=v5litepod-16 "
    f"--runtime-version=v2-alpha-tpuv5-lite {PLACE}"
)
DELETE = f"{RESOURCES} delete b0 --force --quiet {PLACE}"
COPY = f"{VM} scp SCRATCH/jaxcls.tar.gz b0:jaxcls.tar.gz --worker=all {PLACE}"
UNPACK = (
    f"{VM} ssh b0 --worker=all {PLACE} "
    "--command=mkdir -p jaxcls && tar -xzf jaxcls.tar.gz -C jaxcls"
)


def worker(command: str, workers: str = "all") -> str:
    script = "bash jaxcls/launch/tpu_worker.sh"
    return f"{VM} ssh b0 --worker={workers} {PLACE} --command={script} {command}"


INSTALL = [COPY, UNPACK, worker("install .")]
START = worker(f"start {CONFIG} --workdir gs://bucket/run")
STATUS = worker("status")
STOP = worker("stop")


def logs(line: int) -> str:
    return worker(f"logs {line}", "0")


ABSENT = Reply(err="ERROR: (gcloud) NOT_FOUND: Resource was not found\n", status=1)
FLAKE = Reply(err="ssh: connection reset by peer\n", status=255)


def state(*names: str) -> list[Reply]:
    return [ABSENT if name == "NOT_FOUND" else Reply(out=f"{name}\n") for name in names]


def ended(*statuses: str) -> Reply:
    """What the workers' `status` prints."""
    lines = [f"jaxcls-status worker-{index} {text}\n" for index, text in enumerate(statuses)]
    return Reply(out="".join(lines))


@pytest.fixture
def gcloud(tmp_path: Path) -> Fakes:
    return Fakes(tmp_path / "fakes", ("gcloud",))


def launch(gcloud: Fakes, phase: str, *options: str, training: tuple[str, ...] = TRAINING):
    return gcloud.run("launch/tpu_pod.sh", phase, *OPTIONS, *options, *training)


def test_run_does_every_phase_once(gcloud: Fakes) -> None:
    gcloud.on("describe", *state("NOT_FOUND", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"))
    gcloud.on("worker.sh logs", Reply(out="step 1\nstep 2\n"))
    gcloud.on("worker.sh status", ended("exited 0", "exited 0"))
    result = launch(gcloud, "run", "--delete")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "step 1\nstep 2\n"
    assert gcloud.calls() == [
        *(DESCRIBE, CREATE, DESCRIBE, DESCRIBE, DESCRIBE),
        *INSTALL,
        *(START, logs(1), DESCRIBE, STATUS),
        DELETE,
    ]


def test_without_delete_the_cost_is_named(gcloud: Fakes) -> None:
    gcloud.on("describe", *state("ACTIVE"))
    gcloud.on("worker.sh status", ended("exited 0"))
    result = launch(gcloud, "run")
    assert result.returncode == 0, result.stderr
    assert CREATE not in gcloud.calls()
    assert DELETE not in gcloud.calls()
    assert f"delete it with: bash launch/tpu_pod.sh delete --name b0 {PLACE}" in result.stderr


def test_a_preempted_tpu_is_created_again_and_the_run_continues(gcloud: Fakes) -> None:
    gcloud.on(
        "describe", *state("NOT_FOUND", "ACTIVE", "SUSPENDED", "SUSPENDED", "CREATING", "ACTIVE")
    )
    gcloud.on("worker.sh logs", Reply(out="step 1\n", status=255), Reply(out="step 2\n"))
    gcloud.on("worker.sh status", ended("exited 0"))
    result = launch(gcloud, "run", "--spot")
    assert result.returncode == 0, result.stderr
    spot = CREATE.replace(PLACE, f"--spot {PLACE}")
    assert gcloud.calls() == [
        *(DESCRIBE, spot, DESCRIBE),
        *INSTALL,
        *(START, logs(1), DESCRIBE),
        *(DESCRIBE, DELETE, spot, DESCRIBE, DESCRIBE),
        *INSTALL,
        *(START, logs(1), DESCRIBE, STATUS),
    ]
    assert result.stdout == "step 1\nstep 2\n"


def test_a_tpu_that_is_taken_away_before_it_is_ready_is_asked_for_again(gcloud: Fakes) -> None:
    gcloud.on("describe", *state("NOT_FOUND", "PROVISIONING", "SUSPENDED", "CREATING", "ACTIVE"))
    gcloud.on("worker.sh status", ended("exited 0"))
    result = launch(gcloud, "run", "--spot")
    assert result.returncode == 0, result.stderr
    spot = CREATE.replace(PLACE, f"--spot {PLACE}")
    assert gcloud.calls()[:8] == [
        *(DESCRIBE, spot, DESCRIBE, DESCRIBE),
        *(DELETE, spot, DESCRIBE, DESCRIBE),
    ]
    assert "taken away before it was ready" in result.stderr


def test_preemptions_and_stops_do_not_use_up_the_restarts(gcloud: Fakes) -> None:
    gcloud.on("describe", *state("ACTIVE"))
    gcloud.on(
        "worker.sh status",
        *[ended("exited 75", "exited 75")] * 3,
        ended("exited 1", "exited 75"),
        ended("exited 0", "exited 0"),
    )
    result = launch(gcloud, "run", "--max-restarts", "1")
    assert result.returncode == 0, result.stderr
    assert gcloud.calls() == [
        *(DESCRIBE, DESCRIBE),
        *INSTALL,
        *[START, logs(1), DESCRIBE, STATUS, STOP] * 4,
        *(START, logs(1), DESCRIBE, STATUS),
    ]


def test_crashes_use_up_the_restarts(gcloud: Fakes) -> None:
    gcloud.on("describe", *state("ACTIVE"))
    gcloud.on("worker.sh status", ended("exited 0", "exited 134"))
    result = launch(gcloud, "run", "--max-restarts", "2", "--delete")
    assert result.returncode == 1
    assert "no restart is left (--max-restarts 2)" in result.stderr
    assert gcloud.calls() == [
        *(DESCRIBE, DESCRIBE),
        *INSTALL,
        *[START, logs(1), DESCRIBE, STATUS, STOP] * 2,
        *(START, logs(1), DESCRIBE, STATUS),
        DELETE,
    ]


def test_a_mistake_is_not_restarted(gcloud: Fakes) -> None:
    gcloud.on("describe", *state("ACTIVE"))
    gcloud.on("worker.sh status", ended("exited 2", "exited 1"))
    result = launch(gcloud, "run")
    assert result.returncode == 2
    assert gcloud.calls().count(START) == 1


def test_ssh_flakes_are_tried_again(gcloud: Fakes) -> None:
    gcloud.on("describe", *state("ACTIVE"))
    gcloud.on("tpu-vm scp", FLAKE, Reply())
    gcloud.on("worker.sh install", FLAKE, FLAKE, Reply())
    gcloud.on("worker.sh start", FLAKE, Reply())
    gcloud.on("worker.sh logs", Reply(out="a\nb\n", status=255), Reply(out="c\n"))
    gcloud.on("worker.sh status", FLAKE, ended("running"), ended("exited 0"))
    result = launch(gcloud, "run")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "a\nb\nc\n"
    assert gcloud.calls() == [
        *(DESCRIBE, DESCRIBE),
        *(COPY, COPY, UNPACK, *[worker("install .")] * 3),
        *(START, START),
        *(logs(1), DESCRIBE, STATUS, STATUS),
        *(logs(3), DESCRIBE, STATUS),
    ]


def test_ssh_that_never_works_ends_it(gcloud: Fakes) -> None:
    gcloud.on("tpu-vm scp", FLAKE)
    result = launch(gcloud, "install")
    assert result.returncode == 1
    assert gcloud.calls() == [COPY] * 5
    assert "cannot copy the code to the workers" in result.stderr


def test_workers_that_continue_without_worker_0_are_stopped(gcloud: Fakes) -> None:
    gcloud.on("describe", *state("ACTIVE"))
    gcloud.on("worker.sh status", ended("exited 1", "running"))
    result = launch(gcloud, "run", "--max-restarts", "0")
    assert result.returncode == 1
    assert gcloud.calls().count(STATUS) == 20
    assert "stopping it" in result.stderr


def test_a_worker_that_knows_nothing_is_set_up_again(gcloud: Fakes) -> None:
    gcloud.on("describe", *state("ACTIVE"))
    gcloud.on("worker.sh status", ended("exited 1", "absent"), ended("exited 0", "exited 0"))
    result = launch(gcloud, "run")
    assert result.returncode == 0, result.stderr
    assert gcloud.calls().count(worker("install .")) == 2


@pytest.mark.parametrize(
    "error",
    [
        "ERROR: (gcloud) RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepodPerZone' has been exceeded.",
        "ERROR: You have reached TPUV5 limit; Quota exceeded for quota metric",
    ],
)
def test_a_quota_error_says_what_to_do(gcloud: Fakes, error: str) -> None:
    gcloud.on("describe", ABSENT)
    gcloud.on("create", Reply(err=error, status=1))
    result = launch(gcloud, "run")
    assert result.returncode == 1
    assert gcloud.calls() == [DESCRIBE, CREATE]
    assert error in result.stderr
    assert "no quota for v5litepod-16 in this zone: ask for more" in result.stderr
    assert "paid for" not in result.stderr


@pytest.mark.parametrize("name", ["FAILED", "SUSPENDED"])
def test_a_request_that_fails_says_why(gcloud: Fakes, name: str) -> None:
    gcloud.on("yaml", Reply(out="failedData: out of capacity\n"))
    gcloud.on("describe", *state("NOT_FOUND", "PROVISIONING", name))
    result = launch(gcloud, "create")
    assert result.returncode == 1
    assert gcloud.calls() == [DESCRIBE, CREATE, DESCRIBE, DESCRIBE, EXPLAIN]
    assert "out of capacity" in result.stderr
    assert f"it is {name}. Delete it with" in result.stderr


def test_waiting_for_a_tpu_has_an_end(gcloud: Fakes) -> None:
    gcloud.on("describe", *state("NOT_FOUND", "WAITING_FOR_RESOURCES"))
    result = launch(gcloud, "create", "--create-timeout", "0")
    assert result.returncode == 1
    assert gcloud.calls() == [DESCRIBE, CREATE, DESCRIBE]
    assert "still WAITING_FOR_RESOURCES after 0 s" in result.stderr


def test_a_failing_gcloud_is_shown(gcloud: Fakes) -> None:
    gcloud.on(
        "describe", Reply(err="ERROR: PERMISSION_DENIED: tpu.queuedResources.get\n", status=1)
    )
    result = launch(gcloud, "create")
    assert result.returncode == 1
    assert gcloud.calls() == [DESCRIBE] * 5
    assert "PERMISSION_DENIED" in result.stderr


def test_phases_alone(gcloud: Fakes) -> None:
    gcloud.on("describe", *state("ACTIVE"))
    for phase in ("start", "logs", "status", "stop", "delete"):
        result = launch(gcloud, phase)
        assert result.returncode == 0, (phase, result.stderr)
    assert gcloud.calls() == [START, logs(1), DESCRIBE, STATUS, STOP, DELETE]


def test_logs_attaches_again(gcloud: Fakes) -> None:
    gcloud.on("worker.sh logs", Reply(out="a\n", status=255), Reply(out="b\n"))
    result = launch(gcloud, "logs")
    assert result.stdout == "a\nb\n"
    assert gcloud.calls() == [logs(1), logs(2)]


def test_collect(gcloud: Fakes, tmp_path: Path) -> None:
    result = launch(gcloud, "collect")
    assert gcloud.calls() == []
    assert "gcloud storage rsync --recursive gs://bucket/run runs/run" in result.stderr
    script = str(Path("launch/tpu_pod.sh").resolve())
    result = gcloud.run(script, "collect", *OPTIONS, "--", CONFIG, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert gcloud.calls() == [
        f"{VM} scp --recurse b0:jaxcls/runs/kerascv_b0 runs/ --worker=0 {PLACE}"
    ]


def test_data_is_read_from_the_bucket_or_staged(gcloud: Fakes) -> None:
    launch(gcloud, "start", "--data-dir", "gs://bucket/tfds")
    launch(gcloud, "install", "--data-dir", "gs://bucket/tfds", "--stage")
    launch(gcloud, "start", "--data-dir", "gs://bucket/tfds", "--stage")
    assert gcloud.calls() == [
        f"{START} --data.data-dir gs://bucket/tfds",
        *INSTALL,
        worker("stage gs://bucket/tfds"),
        f"{START} --data.data-dir data",
    ]


def test_code_from_a_wheel_or_a_url(gcloud: Fakes, tmp_path: Path) -> None:
    wheel = tmp_path / "jaxcls-0.1.0-py3-none-any.whl"
    wheel.write_text("a wheel")
    kept = tmp_path / "kept.tar.gz"
    gcloud.on("tpu-vm scp", Reply(script=f"cp \"$5\" '{kept}'"))
    launch(gcloud, "install", "--code", str(wheel))
    with tarfile.open(kept) as archive:
        names = set(archive.getnames())
    assert {f"wheels/{wheel.name}", CONFIG, "launch/tpu_worker.sh"} <= names
    assert "pyproject.toml" not in names
    launch(gcloud, "install", "--code", "git+https://host/jaxcls@main")
    assert gcloud.calls() == [
        *(COPY, UNPACK, worker(f"install wheels/{wheel.name}")),
        *(COPY, UNPACK, worker("install git+https://host/jaxcls@main")),
    ]


@pytest.mark.parametrize(
    ("code", "refused"),
    [
        ("git+https://host/jaxcls@main", False),
        ("git+https://host/jaxcls@main#subdirectory=a", False),
        ("git+ssh://git@host/jaxcls", False),
        ("git+https://TOKEN@host/jaxcls@main", True),
        ("git+https://me:TOKEN@host/jaxcls", True),
        ("git+ssh://me:TOKEN@host/jaxcls", True),
        ("https://bucket.host/jaxcls.tar.gz?X-Goog-Signature=TOKEN", True),
    ],
)
def test_no_secret_in_the_address_of_the_code_gets_to_the_machines(
    gcloud: Fakes, code: str, refused: bool
) -> None:
    result = launch(gcloud, "install", "--code", code)
    assert result.returncode == (2 if refused else 0), result.stderr
    assert ("has a password or token in it" in result.stderr) == refused
    assert "TOKEN" not in result.stderr
    assert any("TOKEN" in call for call in gcloud.calls()) is False
    assert bool(gcloud.calls()) != refused


def test_arguments_keep_their_quotes(gcloud: Fakes, tmp_path: Path) -> None:
    got = tmp_path / "got"
    gcloud.on("worker.sh start", words_of_remote_command(got))
    pattern = "(stem|block).* it's $HOME $(touch x) `touch x` ;& \\x1b]0;x\\x07 日本"
    result = launch(gcloud, "start", training=(*TRAINING, "--optimizer.freeze", pattern, "1"))
    assert result.returncode == 0, result.stderr
    assert got.read_text().splitlines() == [
        *("jaxcls/launch/tpu_worker.sh", "start", CONFIG, "--workdir", "gs://bucket/run"),
        *("--optimizer.freeze", pattern, "1"),
    ]


def test_dry_run_prints_and_runs_nothing(gcloud: Fakes) -> None:
    result = launch(gcloud, "run", "--spot", "--delete", "--dry-run")
    assert result.returncode == 0, result.stderr
    assert gcloud.calls() == []
    lines = result.stdout.splitlines()
    spot = CREATE.replace(PLACE, f"--spot {PLACE}")
    assert [line.replace("'", "") for line in lines][:3] == [DESCRIBE, spot, DESCRIBE]
    assert lines[3].startswith("tar --create")
    assert lines[-1] == DELETE
    assert len(lines) == 12


def test_a_run_in_a_bucket_resumes_there(gcloud: Fakes) -> None:
    for config in ("gs://bucket/run", "gs://bucket/run/config.json"):
        launch(gcloud, "start", training=("--", config))
        assert gcloud.calls()[-1] == worker(f"start {config}")


@pytest.mark.parametrize("phase", ["create", "run"])
def test_printed_commands_can_be_pasted(gcloud: Fakes, phase: str) -> None:
    gcloud.on("describe", *state("NOT_FOUND", "FAILED"))
    result = launch(gcloud, phase)
    assert f"Delete it with: bash launch/tpu_pod.sh delete --name b0 {PLACE}\n" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--name", "b0", "--", CONFIG), "give --accelerator-type"),
        (("create", "--name", "b0", "--accelerator-type", "v4-8"), "give --runtime-version"),
        (("start", "--name", "b0"), "give the config and arguments of jaxcls train after --"),
        (("start", "--name", "b0", "--", "/etc/passwd"), "must be a file of configs/"),
        (("start", "--", CONFIG), "--name: give lower-case letters"),
        (("start", "--name"), "--name: give a value"),
        (("start", "--name", "b0", "--sport"), "unknown option --sport"),
        (("run", "--name", "b0", "--max-restarts", "x"), "--max-restarts: give a whole number"),
        (("run", "--name", "b0", "--stage"), "--stage: also give --data-dir"),
        (("run", "--name", "b0", "--data-dir", "/x"), "--data-dir: give a gs:// path"),
        (("install", "--name", "b0", "--code", "nowhere.whl"), "there is no wheel nowhere.whl"),
        (("install", "--name", "b0", "--code", "tests"), "there is no pyproject.toml in tests"),
        (("walk",), "usage: bash launch/tpu_pod.sh PHASE"),
    ],
)
def test_mistakes(gcloud: Fakes, arguments: tuple[str, ...], message: str) -> None:
    result = gcloud.run("launch/tpu_pod.sh", *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert gcloud.calls() == []


def test_a_run_on_the_workers_disks_is_warned_of(gcloud: Fakes) -> None:
    result = launch(gcloud, "start", training=("--", CONFIG))
    assert "runs/kerascv_b0 is on the workers' disks" in result.stderr
