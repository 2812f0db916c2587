"""tpu_gce.sh against a gcloud that records its calls and fails as Compute Engine does.

What it shares with tpu_pod.sh is tested there.
"""

from pathlib import Path

import pytest
from fakes import Fakes, Reply, words_of_remote_command

PLACE = "--zone=us-central1-c --project=p"
CONFIG = "configs/imagenet/kerascv_b0.py"
OPTIONS = {
    "--name": "b0",
    "--machine-type": "tpu7x-standard-4t",
    "--topology": "2x2x1",
    "--image-family": "tpu-images",
    "--zone": "us-central1-c",
    "--project": "p",
}
TRAINING = ("--", CONFIG, "--workdir", "gs://bucket/run")

GROUP = "gcloud compute instance-groups managed"
LOOK = (
    f"{GROUP} list-instances b0 {PLACE} --format=value(instance.basename(),instanceStatus,"
    "currentAction,lastAttempt.errors.errors[0].code,lastAttempt.errors.errors[0].message)"
)
NAMES = f"{GROUP} list-instances b0 {PLACE} --format=value(instance.basename())"
TEMPLATE = (
    "gcloud compute instance-templates create jaxcls-b0 --machine-type=tpu7x-standard-4t "
    "--image-family=tpu-images --image-project=ubuntu-os-accelerator-images "
    "--boot-disk-size=100GB --maintenance-policy=TERMINATE --scopes=cloud-platform --project=p"
)
SPOT = TEMPLATE.replace(
    "--project=p", "--provisioning-model=SPOT --instance-termination-action=STOP --project=p"
)
POLICY = (
    "gcloud compute resource-policies create workload-policy jaxcls-b0 --type=HIGH_THROUGHPUT "
    "--accelerator-topology=2x2x2 --region=us-central1 --project=p"
)
CREATE = (
    f"{GROUP} create b0 --size=1 --template=jaxcls-b0 "
    f"--default-action-on-vm-failure=do-nothing {PLACE}"
)
CREATE_SLICE = CREATE.replace("--size=1", "--size=2").replace(
    PLACE,
    "--target-size-policy-mode=bulk "
    f"--workload-policy=regions/us-central1/resourcePolicies/jaxcls-b0 {PLACE}",
)
DELETE = [
    f"{GROUP} delete b0 {PLACE} --quiet",
    "gcloud compute instance-templates delete jaxcls-b0 --project=p --quiet",
    "gcloud compute resource-policies delete jaxcls-b0 --region=us-central1 --project=p --quiet",
]
UNPACK = "mkdir -p jaxcls && tar -xzf jaxcls.tar.gz -C jaxcls"


def ssh(command: str, machine: str = "b0-x") -> str:
    return f"gcloud compute ssh {machine} --quiet {PLACE} --command={command}"


def worker(command: str, machine: str = "b0-x") -> str:
    return ssh(f"bash jaxcls/launch/tpu_worker.sh {command}", machine)


def copy(machine: str = "b0-x") -> str:
    return f"gcloud compute scp SCRATCH/jaxcls.tar.gz {machine}:jaxcls.tar.gz --quiet {PLACE}"


INSTALL = [copy(), ssh(UNPACK), worker("install .")]
START = worker(f"start {CONFIG} --workdir gs://bucket/run")
STATUS = worker("status")

ABSENT = Reply(err="ERROR: The resource 'projects/p/x/b0' was not found\n", status=1)
FLAKE = Reply(err="ssh: connection reset by peer\n", status=255)
DONE = Reply(out="jaxcls-status b0-x exited 0\n")


def machines(*statuses: str) -> Reply:
    """What list-instances prints: a status, or status|action|code|message, for each machine."""
    lines = [f"b0-{'xyz'[i]}\t" + text.replace("|", "\t") for i, text in enumerate(statuses)]
    return Reply(out="".join(f"{line}\n" for line in lines))


@pytest.fixture
def gcloud(tmp_path: Path) -> Fakes:
    fakes = Fakes(tmp_path / "fakes", ("gcloud",))
    fakes.on(r"list-instances .*basename\(\)\)$", Reply(out="b0-x\n"))
    return fakes


def launch(
    gcloud: Fakes, phase: str, *switches: str, training: tuple[str, ...] = TRAINING, **options: str
):
    """Options as keywords replace those of OPTIONS; an empty one leaves it out."""
    given = OPTIONS | {f"--{name.replace('_', '-')}": value for name, value in options.items()}
    words = [word for name, value in given.items() if value for word in (name, value)]
    return gcloud.run("launch/tpu_gce.sh", phase, *words, *switches, *training)


def test_run_on_one_machine(gcloud: Fakes) -> None:
    gcloud.on("list-instances", ABSENT, machines("|CREATING"), machines("STAGING|CREATING"),
              machines("RUNNING|NONE"))  # fmt: skip
    gcloud.on("worker.sh logs", Reply(out="step 1\n"))
    gcloud.on("worker.sh status", DONE)
    result = launch(gcloud, "run", "--delete")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "step 1\n"
    assert gcloud.calls() == [
        *(LOOK, TEMPLATE, CREATE, LOOK, LOOK, LOOK),
        *(NAMES, *INSTALL, START, worker("logs 1"), LOOK, STATUS),
        *DELETE,
    ]


def test_a_slice_of_several_machines(tmp_path: Path) -> None:
    """All are reached; worker 0 is the one whose metadata say so, not the first by name."""
    gcloud = Fakes(tmp_path / "fakes", ("gcloud",))
    gcloud.on(r"list-instances .*basename\(\)\)$", Reply(out="b0-x\nb0-y\n"))
    gcloud.on("list-instances", ABSENT, machines("RUNNING", "STAGING"), machines(*["RUNNING"] * 2))
    number = '[[ $3 == b0-y ]] && echo "jaxcls-worker 0 b0-y" || echo "jaxcls-worker 1 b0-x"'
    gcloud.on("agent-worker-number", Reply(script=number))
    gcloud.on("worker.sh logs", Reply(out="step 1\n"))
    gcloud.on("worker.sh status", Reply(script='echo "jaxcls-status $3 exited 0"'))
    result = launch(gcloud, "run", topology="2x2x2")
    assert result.returncode == 0, result.stderr
    calls = [call for call in gcloud.calls() if "agent-worker-number" not in call]
    assert calls[:7] == [LOOK, TEMPLATE, POLICY, CREATE_SLICE, LOOK, LOOK, NAMES]
    both = [
        (copy("b0-x"), copy("b0-y")),
        (ssh(UNPACK, "b0-x"), ssh(UNPACK, "b0-y")),
        (worker("install .", "b0-x"), worker("install .", "b0-y")),
        (START, START.replace("b0-x", "b0-y")),
    ]
    for index, pair in enumerate(both):  # at the same time, so in any order
        assert sorted(calls[7 + 2 * index : 9 + 2 * index]) == list(pair)
    assert calls[15:17] == [worker("logs 1", "b0-y"), LOOK]
    assert sorted(calls[17:]) == [STATUS, worker("status", "b0-y")]


def test_machines_without_numbers_are_refused(tmp_path: Path) -> None:
    gcloud = Fakes(tmp_path / "fakes", ("gcloud",))
    gcloud.on("list-instances", Reply(out="b0-x\nb0-y\n"))
    gcloud.on("agent-worker-number", Reply(script='echo "jaxcls-worker $3"'))
    result = launch(gcloud, "start", topology="2x2x2")
    assert result.returncode == 1
    assert "agent-worker-number" in result.stderr
    assert not any("worker.sh start" in call for call in gcloud.calls())


def test_a_machine_that_fails_is_seen_among_others(tmp_path: Path) -> None:
    gcloud = Fakes(tmp_path / "fakes", ("gcloud",))
    names = [f"b0-{index}" for index in range(20)]  # more than are reached at the same time
    gcloud.on("list-instances", Reply(out="".join(f"{name}\n" for name in names)))
    gcloud.on("agent-worker-number", Reply(script='echo "jaxcls-worker ${3#b0-} $3"'))
    gcloud.on("ssh b0-3 .*worker.sh stop", FLAKE, Reply())
    result = launch(gcloud, "stop")
    assert result.returncode == 0, result.stderr
    stops = [call.split()[3] for call in gcloud.calls() if "worker.sh stop" in call]
    assert sorted(stops) == sorted(names * 2)


@pytest.mark.parametrize("status", ["TERMINATED|NONE", "STOPPING|NONE", "|NONE"])
def test_preempted_machines_are_created_again_and_the_run_continues(
    gcloud: Fakes, status: str
) -> None:
    running = machines("RUNNING|NONE")
    gcloud.on("list-instances", ABSENT, running, machines(status), machines(status), running)
    gcloud.on("worker.sh logs", Reply(out="step 1\n", status=255), Reply(out="step 2\n"))
    gcloud.on("worker.sh status", DONE)
    result = launch(gcloud, "run", "--spot")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "step 1\nstep 2\n"
    assert gcloud.calls() == [
        *(LOOK, SPOT, CREATE, LOOK, NAMES, *INSTALL, START, worker("logs 1"), LOOK),
        *(LOOK, *DELETE, SPOT, CREATE, LOOK, NAMES, *INSTALL, START, worker("logs 1")),
        *(LOOK, STATUS),
    ]
    assert "bash launch/tpu_gce.sh delete --name b0 --zone=us-central1-c" in result.stderr


def test_a_group_that_exists_is_used(gcloud: Fakes) -> None:
    gcloud.on("list-instances", machines("RUNNING|DELETING"), machines("RUNNING|NONE"))
    result = launch(gcloud, "create")
    assert result.returncode == 0, result.stderr
    assert gcloud.calls() == [LOOK, LOOK, LOOK]


def test_what_compute_engine_lacks_is_said_once(gcloud: Fakes) -> None:
    lacking = machines("|CREATING|ZONE_RESOURCE_POOL_EXHAUSTED|no capacity in this zone")
    gcloud.on("list-instances", ABSENT, lacking, lacking, lacking, machines("RUNNING|NONE"))
    result = launch(gcloud, "create")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("no capacity in this zone") == 1


def test_machines_over_the_quota(gcloud: Fakes) -> None:
    gcloud.on("list-instances", ABSENT, machines("|CREATING|QUOTA_EXCEEDED|Quota TPU7X exceeded"))
    result = launch(gcloud, "create", "--spot")
    assert result.returncode == 1
    assert "Quota TPU7X exceeded" in result.stderr
    assert "no quota for tpu7x-standard-4t (spot) in this zone" in result.stderr
    assert "a smaller --topology" in result.stderr


def test_what_was_created_for_a_refused_group_is_deleted(gcloud: Fakes) -> None:
    gcloud.on("list-instances", ABSENT)
    gcloud.on("managed create", Reply(err="Machine type is not in this zone\n", status=1))
    gcloud.on("(managed|policies) delete", ABSENT)
    result = launch(gcloud, "run", topology="2x2x2")
    assert result.returncode == 1
    assert "Machine type is not in this zone" in result.stderr
    assert "could not create the managed instance group b0" in result.stderr
    assert gcloud.calls() == [LOOK, TEMPLATE, POLICY, CREATE_SLICE, *DELETE]


def test_a_failing_delete_is_shown(gcloud: Fakes) -> None:
    gcloud.on("managed delete", Reply(err="PERMISSION_DENIED\n", status=1))
    result = launch(gcloud, "delete")
    assert result.returncode == 1
    assert gcloud.calls() == DELETE[:1] * 5
    assert "PERMISSION_DENIED" in result.stderr


def test_a_template_of_the_user_is_neither_made_nor_deleted(gcloud: Fakes) -> None:
    gcloud.on("list-instances", ABSENT, machines("RUNNING|NONE"))
    result = launch(gcloud, "create", instance_template="mine", image_family="")
    assert result.returncode == 0, result.stderr
    assert gcloud.calls() == [LOOK, CREATE.replace("jaxcls-b0", "mine"), LOOK]
    launch(gcloud, "delete", instance_template="mine")
    assert gcloud.calls()[3:] == DELETE


def test_options_of_the_template(gcloud: Fakes) -> None:
    gcloud.on("list-instances", ABSENT, machines("RUNNING|NONE"))
    result = launch(
        *(gcloud, "create"),
        image_project="own",
        boot_disk_size="1TB",
        service_account="trainer@p.iam.gserviceaccount.com",
    )
    assert result.returncode == 0, result.stderr
    call = gcloud.calls()[1]
    assert " --image-project=own --boot-disk-size=1TB " in call
    assert " --service-account=trainer@p.iam.gserviceaccount.com " in call


def test_phases_alone(gcloud: Fakes) -> None:
    gcloud.on("list-instances", machines("RUNNING|NONE"))
    for phase in ("start", "logs", "status", "stop", "delete"):
        result = launch(gcloud, phase)
        assert result.returncode == 0, (phase, result.stderr)
    assert gcloud.calls() == [
        *(NAMES, START, NAMES, worker("logs 1"), LOOK, NAMES, STATUS, NAMES, worker("stop")),
        *DELETE,
    ]


def test_phases_need_machines(tmp_path: Path) -> None:
    gcloud = Fakes(tmp_path / "fakes", ("gcloud",))
    gcloud.on("list-instances", ABSENT)
    for phase in ("install", "start", "logs", "status", "stop"):
        result = launch(gcloud, phase)
        assert result.returncode == 1
        assert "there are no machines of b0; create it first" in result.stderr


def test_collect(gcloud: Fakes, tmp_path: Path) -> None:
    script = str(Path("launch/tpu_gce.sh").resolve())
    options = ("--name", "b0", "--zone", "us-central1-c", "--project", "p")
    result = gcloud.run(script, "collect", *options, "--", CONFIG, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    run = "b0-x:jaxcls/runs/kerascv_b0"
    assert gcloud.calls() == [NAMES, f"gcloud compute scp --recurse {run} runs/ --quiet {PLACE}"]


def test_arguments_keep_their_quotes(gcloud: Fakes, tmp_path: Path) -> None:
    got = tmp_path / "got"
    gcloud.on("worker.sh start", words_of_remote_command(got))
    pattern = "(stem|block).* it's {} $HOME $(touch x) `touch x` ;& \\x1b]0;x\\x07 日本"
    result = launch(gcloud, "start", training=(*TRAINING, "--optimizer.freeze", pattern, "1"))
    assert result.returncode == 0, result.stderr
    assert got.read_text().splitlines()[-3:] == ["--optimizer.freeze", pattern, "1"]


def test_dry_run_prints_and_runs_nothing(gcloud: Fakes) -> None:
    result = launch(gcloud, "run", "--spot", "--delete", "--dry-run", topology="2x2x2")
    assert result.returncode == 0, result.stderr
    assert gcloud.calls() == []
    lines = [line.replace("'", "") for line in result.stdout.splitlines()]
    assert lines[:6] == [LOOK, SPOT, POLICY, CREATE_SLICE, LOOK, NAMES]
    assert lines[-3:] == DELETE
    assert worker("logs 1", "b0-0") in lines
    assert START.replace("b0-x", "b0-1") in lines


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"zone": ""}, "--zone: give one such as us-central1-c, got ''"),
        ({"zone": "central"}, "--zone: give one such as us-central1-c, got 'central'"),
        ({"name": "b" * 57}, "--name: give at most 56 characters, got 57"),
        ({"machine_type": ""}, "--machine-type: give one that ends in its number of chips"),
        ({"machine_type": "n2-standard-8"}, "--machine-type: give one that ends in"),
        ({"topology": ""}, "--topology: give one such as 2x2x4, got ''"),
        ({"topology": "4x4"}, "--topology: tpu7x-standard-4t takes three numbers, such as 2x2x4"),
        (
            {"machine_type": "ct6e-standard-4t", "topology": "2x2x1"},
            "--topology: ct6e-standard-4t takes two numbers, such as 4x4",
        ),
        ({"topology": "1x1x2"}, "the 2 chips of 1x1x2 are not a multiple of the 4 chips of a host"),
        ({"image_family": ""}, "give --image-family; this lists them: gcloud compute images list"),
        ({"accelerator_type": "v5p-8"}, "unknown option --accelerator-type"),
    ],
)
def test_mistakes(gcloud: Fakes, options: dict[str, str], message: str) -> None:
    result = launch(gcloud, "run", training=TRAINING, **options)
    assert result.returncode == 2
    assert message in result.stderr
    assert gcloud.calls() == []


def test_spot_belongs_into_the_users_own_template(gcloud: Fakes) -> None:
    result = launch(gcloud, "run", "--spot", instance_template="mine")
    assert result.returncode == 2
    assert "--spot: set it in the --instance-template" in result.stderr
