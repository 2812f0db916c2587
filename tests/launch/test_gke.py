"""gke.sh against a recording kubectl; the JobSet against the fields that the APIs document."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes import Fakes, Reply

CONFIG = "configs/imagenet/kerascv_b0.py"
OPTIONS = [
    "--name",
    "b0",
    "--image",
    "registry/jaxcls:1",
    "--accelerator",
    "tpu-v5-lite-podslice",
    "--topology",
    "4x4",
]
TRAINING = ("--", CONFIG, "--workdir", "gs://bucket/run")

APPLY = "kubectl apply --filename=-"
STATE = "kubectl get jobset b0 --output=jsonpath={.status.terminalState}"
PODS = (
    "kubectl get pods --sort-by=.metadata.creationTimestamp --output=name "
    "--selector=jobset.sigs.k8s.io/jobset-name=b0,batch.kubernetes.io/job-completion-index=0"
)


@pytest.fixture
def kubectl(tmp_path: Path) -> Fakes:
    fakes = Fakes(tmp_path / "fakes", ("kubectl",))
    fakes.on("apply", Reply(script=f"cat >'{tmp_path}/applied.yaml'"))
    return fakes


def launch(kubectl: Fakes, phase: str, *options: str, training: tuple[str, ...] = TRAINING):
    return kubectl.run("launch/gke.sh", phase, *OPTIONS, *options, *training)


def shown(kubectl: Fakes, *options: str, training: tuple[str, ...] = TRAINING) -> Any:
    result = launch(kubectl, "show", *options, training=training)
    assert result.returncode == 0, result.stderr
    return yaml.safe_load(result.stdout)


# ---- A strict check of a manifest. A schema is a type, a list of one schema, a set of allowed
# values, a regular expression for strings, or a table of fields; fields with a ! must be there.

NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
STRING_MAP = {re.compile(r"[a-zA-Z0-9./-]+"): str}
QUANTITIES = {re.compile(r"google\.com/tpu"): int}

POD = {
    "restartPolicy!": {"Never"},  # the only one that podFailurePolicy allows
    "serviceAccountName": NAME,
    "terminationGracePeriodSeconds": int,
    "nodeSelector": STRING_MAP,
    "tolerations": [
        {
            "key": str,
            "operator": {"Exists", "Equal"},
            "value": str,
            "effect": {"NoSchedule", "NoExecute", "PreferNoSchedule"},
        }
    ],
    "containers!": [
        {
            "name!": NAME,
            "image!": str,
            "args": [str],
            "command": [str],
            "ports": [{"containerPort!": int, "name": NAME}],
            "resources": {"requests": QUANTITIES, "limits": QUANTITIES},
            "volumeMounts": [{"name!": NAME, "mountPath!": str, "readOnly": bool}],
        }
    ],
    "volumes": [{"name!": NAME, "emptyDir": {"medium": {"", "Memory"}, "sizeLimit": str}}],
}
JOB = {
    "parallelism": int,
    "completions": int,
    "completionMode": {"Indexed", "NonIndexed"},
    "backoffLimit": int,
    "podFailurePolicy": {
        "rules!": [
            {
                "action!": {"FailJob", "FailIndex", "Ignore", "Count"},
                "onExitCodes": {
                    "containerName": NAME,
                    "operator!": {"In", "NotIn"},
                    "values!": [int],
                },
                "onPodConditions": [{"type!": str, "status": {"True", "False", "Unknown"}}],
            }
        ]
    },
    "template!": {"metadata": {"labels": STRING_MAP}, "spec!": POD},
}
JOBSET = {
    "apiVersion!": {"jobset.x-k8s.io/v1alpha2"},
    "kind!": {"JobSet"},
    "metadata!": {"name!": NAME, "annotations": STRING_MAP, "labels": STRING_MAP},
    "spec!": {
        "network": {
            "enableDNSHostnames": bool,
            "subdomain": NAME,
            "publishNotReadyAddresses": bool,
        },
        "failurePolicy": {
            "maxRestarts": int,
            "restartStrategy": {"Recreate", "BlockingRecreate"},
            "rules": [
                {
                    "name!": re.compile(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?"),
                    "action!": {
                        "FailJobSet",
                        "RestartJobSet",
                        "RestartJobSetAndIgnoreMaxRestarts",
                    },
                    "onJobFailureReasons": [
                        {
                            "BackoffLimitExceeded",
                            "DeadlineExceeded",
                            "FailedIndexes",
                            "MaxFailedIndexesExceeded",
                            "PodFailurePolicy",
                        }
                    ],
                    "onJobFailureMessagePatterns": [str],
                    "targetReplicatedJobs": [NAME],
                }
            ],
        },
        "replicatedJobs!": [{"name!": NAME, "replicas": int, "template!": {"spec!": JOB}}],
    },
}


def mistakes(value: object, schema: Any, where: str = "") -> list[str]:
    """What in `value` the schema does not allow, each with the path to it."""
    if isinstance(schema, type):
        return [] if type(value) is schema else [f"{where}: {value!r} is no {schema.__name__}"]
    if isinstance(schema, re.Pattern):
        fits = isinstance(value, str) and schema.fullmatch(value)
        return [] if fits else [f"{where}: {value!r} does not match {schema.pattern}"]
    if isinstance(schema, set):
        return [] if value in schema else [f"{where}: {value!r} is none of {sorted(schema)}"]
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [f"{where}: {value!r} is no list"]
        entries = enumerate(value)
        return [
            text for i, entry in entries for text in mistakes(entry, schema[0], f"{where}[{i}]")
        ]
    if not isinstance(value, dict):
        return [f"{where}: {value!r} is no table"]
    fields = {
        key.rstrip("!") if isinstance(key, str) else key: kind for key, kind in schema.items()
    }
    needed = [key[:-1] for key in schema if isinstance(key, str) and key.endswith("!")]
    found = [f"{where}.{key} is missing" for key in needed if key not in value]
    for key, entry in value.items():
        kinds = [
            kind
            for name, kind in fields.items()
            if name == key or (isinstance(name, re.Pattern) and name.fullmatch(key))
        ]
        found += (
            mistakes(entry, kinds[0], f"{where}.{key}") if kinds else [f"{where}.{key}: unknown"]
        )
    return found


def test_the_jobset_has_only_documented_fields(kubectl: Fakes) -> None:
    for options in ((), ("--spot",), ("--service-account", "trainer", "--max-restarts", "7")):
        assert mistakes(shown(kubectl, *options), JOBSET) == []


def test_the_check_finds_what_is_wrong(kubectl: Fakes) -> None:
    manifest = shown(kubectl)
    manifest["spec"]["failurePolicy"]["maxRestart"] = 3
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    job["parallelism"] = "4"
    job["template"]["spec"]["restartPolicy"] = "OnFailure"
    del job["template"]["spec"]["containers"][0]["image"]
    job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] = [2, "75"]
    job_path = ".spec.replicatedJobs[0].template.spec"
    assert sorted(mistakes(manifest, JOBSET)) == sorted(
        [
            ".spec.failurePolicy.maxRestart: unknown",
            f"{job_path}.parallelism: '4' is no int",
            f"{job_path}.template.spec.restartPolicy: 'OnFailure' is none of ['Never']",
            f"{job_path}.template.spec.containers[0].image is missing",
            f"{job_path}.podFailurePolicy.rules[0].onExitCodes.values[1]: '75' is no int",
        ]
    )


# ---- What it means


def after_failure(manifest: Any, *, exit_code: int | None) -> str:
    """The JobSet's action when a pod ends with `exit_code` (None: is disrupted), as documented."""
    spec = manifest["spec"]
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    for index, rule in enumerate(
        spec["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    ):
        codes = rule.get("onExitCodes")
        if codes and exit_code in codes["values"] and rule["action"] == "FailJob":
            reason, message = (
                "PodFailurePolicy",
                f"Container jaxcls for pod default/b0-worker-0-1-abcde failed with exit code "
                f"{exit_code} matching FailJob rule at index {index}",
            )
            break
        if rule.get("onPodConditions") and exit_code is None and rule["action"] == "FailJob":
            reason, message = (
                "PodFailurePolicy",
                f"Pod default/b0-worker-0-1-abcde has condition DisruptionTarget matching FailJob "
                f"rule at index {index}",
            )
            break
    for rule in spec["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(re.search(p, message) for p in patterns):
            return rule["action"]
    return "RestartJobSet"


@pytest.mark.parametrize(
    ("exit_code", "action"),
    [
        (2, "FailJobSet"),
        (75, "RestartJobSetAndIgnoreMaxRestarts"),
        (None, "RestartJobSetAndIgnoreMaxRestarts"),
        (1, "RestartJobSet"),
        (137, "RestartJobSet"),
    ],
)
def test_what_an_exit_status_leads_to(kubectl: Fakes, exit_code: int | None, action: str) -> None:
    manifest = shown(kubectl)
    assert after_failure(manifest, exit_code=exit_code) == action
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["backoffLimit"] == 0


@pytest.mark.parametrize(
    ("accelerator", "topology", "chips", "hosts"),
    [
        ("tpu-v5-lite-podslice", "4x4", "4", 4),
        ("tpu-v6e-slice", "2x4", "8", 1),
        ("tpu-v4-podslice", "2x2x4", "4", 4),
        ("tpu-v5p-slice", "2x2x4", "4", 4),
        ("tpu7x", "2x2x1", "4", 1),
        ("tpu7x", "4x4x8", "4", 32),
        ("tpu9-new", "2x2x2x2", "4", 4),
    ],
)
def test_the_slice(kubectl: Fakes, accelerator: str, topology: str, chips: str, hosts: int) -> None:
    manifest = shown(
        *(kubectl, "--accelerator", accelerator, "--topology", topology),
        *("--chips-per-host", chips),
    )
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    assert job["parallelism"] == job["completions"] == hosts
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": topology,
    }
    resources = pod["containers"][0]["resources"]
    assert resources["limits"] == resources["requests"] == {"google.com/tpu": int(chips)}
    assert manifest["spec"]["network"]["enableDNSHostnames"]


def test_options_reach_the_jobset(kubectl: Fakes) -> None:
    odd = (
        'a "b" \\c & ${NAME} $d: #e',
        "x\n\t\x1b]0;x\x07\r",
        "$(touch x) `touch x` {} [] 日本",
        "",
    )
    training = (*TRAINING, "--odd", *odd)
    manifest = shown(
        kubectl,
        "--spot",
        "--data-dir",
        "gs://bucket/tfds",
        "--max-restarts",
        "7",
        training=training,
    )
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["containers"][0]["args"] == [
        *("train", *training[1:], "--data.data-dir", "gs://bucket/tfds")
    ]
    assert pod["containers"][0]["image"] == "registry/jaxcls:1"
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 7


# ---- How it is run


def test_run_follows_worker_0_over_a_restart(kubectl: Fakes, tmp_path: Path) -> None:
    kubectl.on("terminalState", Reply(), Reply(), Reply(), Reply(out="Completed"))
    kubectl.on("get pods", Reply(out="pod/first\n"), Reply(out="pod/first\npod/second\n"))
    kubectl.on(
        "logs", Reply(out="step 1\n"), Reply(err="is waiting\n", status=1), Reply("step 2\n")
    )
    result = launch(kubectl, "run")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("step 1\nstep 2\n")
    calls = [re.sub(r"--since-time=\S+", "--since-time=T", call) for call in kubectl.calls()]
    assert calls == [
        APPLY,
        *(STATE, PODS, "kubectl logs --follow pod/first"),
        *[STATE, PODS, "kubectl logs --follow --since-time=T pod/second"] * 3,
    ]
    applied = yaml.safe_load((tmp_path / "applied.yaml").read_text())
    assert applied == shown(kubectl)


@pytest.mark.parametrize(
    ("message", "status"),
    [
        ("Container jaxcls for pod x/y failed with exit code 2 matching FailJob rule", 2),
        ("Job has reached the specified backoff limit", 1),
    ],
)
def test_a_failed_training(kubectl: Fakes, message: str, status: int) -> None:
    kubectl.on("terminalState", Reply(out="Failed"))
    kubectl.on("get jobs .*Failed", Reply(out=message))
    kubectl.on("get jobset .*Failed", Reply(out="jobset failed due to one or more job failures"))
    result = launch(kubectl, "logs")
    assert result.returncode == status
    assert "one or more job failures" in result.stderr


def test_a_kubectl_that_fails_is_asked_again(kubectl: Fakes) -> None:
    down = Reply(err="connection refused\n", status=1)
    kubectl.on("terminalState", *[down] * 4, Reply(out="Completed"))
    assert launch(kubectl, "logs").returncode == 0
    kubectl = Fakes(kubectl.folder / "down", ("kubectl",))
    kubectl.on("terminalState", down)
    result = launch(kubectl, "logs")
    assert result.returncode == 1
    assert kubectl.calls().count(STATE) == 5


def test_phases_alone(kubectl: Fakes) -> None:
    for phase in ("apply", "status", "delete"):
        assert launch(kubectl, phase, "--namespace", "team").returncode == 0
    assert kubectl.calls() == [
        "kubectl --namespace=team apply --filename=-",
        "kubectl --namespace=team get jobset b0",
        "kubectl --namespace=team get pods "
        "--selector=jobset.sigs.k8s.io/jobset-name=b0 --output=wide",
        "kubectl --namespace=team delete jobset b0 --ignore-not-found",
    ]


def test_dry_run_prints_and_runs_nothing(kubectl: Fakes) -> None:
    result = launch(kubectl, "run", "--dry-run")
    assert result.returncode == 0, result.stderr
    assert kubectl.calls() == []
    manifest, _, commands = result.stdout.partition(APPLY)
    assert yaml.safe_load(manifest) == shown(kubectl)
    words = [shlex.join(shlex.split(line)) for line in (STATE, PODS, "kubectl logs --follow POD")]
    assert [shlex.join(shlex.split(line)) for line in commands.splitlines()] == ["", *words]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*OPTIONS, "--topology", "4x"), "--topology: give one such as 4x4"),
        ((*OPTIONS, "--topology", "2x3", *TRAINING), "the 6 chips of 2x3 are not a multiple"),
        (
            (*OPTIONS, "--topology", "2x2x1", *TRAINING),
            "--topology: tpu-v5-lite-podslice takes two numbers, such as 4x4, got '2x2x1'",
        ),
        (
            (*OPTIONS, "--accelerator", "tpu7x", *TRAINING),
            "--topology: tpu7x takes three numbers, such as 2x2x4, got '4x4'",
        ),
        ((*OPTIONS, "--image", "", *TRAINING), "--image: give a value, got ''"),
        ((*OPTIONS, "--name", "B0", *TRAINING), "--name: give lower-case letters"),
        ((*OPTIONS, "--sport"), "unknown option --sport"),
        ((*OPTIONS, "--sport", "x"), "unknown option --sport"),
        (OPTIONS, "give the config and arguments of jaxcls train after --"),
        ((*OPTIONS, "--", CONFIG), "give --workdir with a bucket"),
        (
            (*OPTIONS, "--", CONFIG, "--workdir", "runs/x", "--data.data-dir", "gs://bucket/tfds"),
            "give --workdir with a bucket",
        ),
        ((*OPTIONS, "--", CONFIG, "--workdir"), "--workdir: give a value"),
    ],
)
def test_mistakes(kubectl: Fakes, arguments: tuple[str, ...], message: str) -> None:
    result = kubectl.run("launch/gke.sh", "apply", *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert kubectl.calls() == []
