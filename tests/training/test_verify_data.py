"""Changes of the data's content between a run's start and its resumption (`data.verify`)."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
import pytest
from ports import free_address
from xla_flags import xla_flags

from jaxcls.config import Config, encode
from jaxcls.distributed import agree, watchdog
from jaxcls.distributed.job import JobError
from jaxcls.distributed.mesh import make_mesh
from jaxcls.distributed.watchdog import Watchdog
from jaxcls.models import registry
from jaxcls.runs.data_digests import recorded_digests
from jaxcls.runs.directory import RunError
from jaxcls.runs.reporter import Reporter
from jaxcls.runs.run_state import recorded_state
from jaxcls.training import verify_data as verifying
from jaxcls.training.experiment import open_experiment
from jaxcls.training.loop import Outcome, train
from jaxcls.training.verify_data import verify_data


def make_photos(root: Path) -> Path:
    """16 photos to train on and 4 to evaluate, all of the same size in pixels."""
    for number in range(20):
        split = "train" if number < 16 else "test"
        folder = root / split / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        draw(folder / f"{number}.png", number)
    return root


def draw(file: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
    cv2.imwrite(str(file), pixels, [cv2.IMWRITE_PNG_COMPRESSION, 0])


def photos_config(tiny_config: Config, root: Path, **data: Any) -> Config:
    settings = {"source": f"folder:{root}", "batch_size": 8, "verify": True}
    return dataclasses.replace(
        tiny_config,
        data=dataclasses.replace(tiny_config.data, **(settings | data)),
        num_steps=4,
        eval_every_steps=4,
    )


def resume(config: Config, run: Path, *, allow_changes: bool = False) -> Outcome:
    mesh = make_mesh(jax.devices()[:1])
    return train(config, run, mesh=mesh, allow_changes=allow_changes)


@pytest.fixture(scope="module")
def finished(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, a run that was stopped after step 2, and one that then resumed."""
    folder = tmp_path_factory.mktemp("verify")
    config = photos_config(tiny_config, make_photos(folder / "photos"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reporter, "log", lambda _, step, __: step == 1 and stop())
        stopped = resume(config, folder / "stopped")
    assert stopped.step == 2
    shutil.copytree(folder / "stopped", folder / "run")
    assert resume(config, folder / "run").step == 4
    return folder


def stop() -> None:
    signal.raise_signal(signal.SIGTERM)


@pytest.fixture
def place(finished: Path, tmp_path: Path) -> Path:
    """A copy of the photos and of the runs."""
    return shutil.copytree(finished, tmp_path / "place", dirs_exist_ok=True)


@pytest.fixture
def config(
    tiny_config: Config, finished: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> Config:
    monkeypatch.chdir(place)
    for run in ("run", "stopped"):
        record = place / run / "config.json"
        record.write_text(record.read_text().replace(str(finished / "photos"), "photos"))
    return photos_config(tiny_config, Path("photos"))


def log_of(run: Path) -> str:
    return (run / "log.txt").read_text()


def test_the_run_records_the_digests_and_says_what_reading_cost(finished: Path) -> None:
    digests = recorded_digests(finished / "run")
    assert digests is not None
    assert len(digests) == 20
    assert {name.split("/")[0] for name in digests} == {"train", "test"}
    first, second = re.findall("data.verify: (.*)", log_of(finished / "run"))
    cost = r"read 20 files \(0\.0 MB in \d+\.\d s, \d+ MB/s\); "
    assert re.fullmatch(cost + r"their digests are recorded in data_sha256\.txt", first)
    assert re.fullmatch(cost + r"their content is that of data_sha256\.txt", second)


@pytest.mark.parametrize("file", ["train/dog/7.png", "test/cat/18.png"])
def test_changed_pixels_are_refused_and_the_file_is_named(
    config: Config, place: Path, file: str
) -> None:
    photo, before = place / "photos" / file, recorded_digests(place / "run")
    status, whole = photo.stat(), photo.read_bytes()
    draw(photo, 99)
    os.utime(photo, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert photo.stat().st_size == status.st_size
    with pytest.raises(RunError) as error:
        resume(config, place / "run")
    message = str(error.value)
    assert f"content of the data: 1 file changed: '{file}'\n" in message
    assert "use another --workdir, or give --allow-changes to resume" in message
    state = recorded_state(place / "run")
    assert state is not None
    assert state.state == "finished"  # the run is as it was

    unverified = dataclasses.replace(config, data=dataclasses.replace(config.data, verify=False))
    resume(unverified, place / "run")  # names and numbers of files alone
    assert recorded_digests(place / "run") == before

    resume(config, place / "run", allow_changes=True)
    changed = f"changed since the run began: content of the data: 1 file changed: '{file}'"
    assert changed in log_of(place / "run")
    after = recorded_digests(place / "run")
    assert before is not None
    assert after is not None
    assert {name for name in before if before[name] != after[name]} == {file}
    resume(config, place / "run")  # the new content is now that of the run
    photo.write_bytes(whole)
    with pytest.raises(RunError, match=f"1 file changed: '{file}'"):
        resume(config, place / "run")


def test_a_training_goes_on_with_changed_data_only_if_allowed(config: Config, place: Path) -> None:
    draw(place / "photos/train/cat/2.png", 99)
    with pytest.raises(RunError, match=r"1 file changed: 'train/cat/2\.png'"):
        resume(config, place / "stopped")
    assert resume(config, place / "stopped", allow_changes=True).step == 4
    assert "content of the data: 1 file changed: 'train/cat/2.png'" in log_of(place / "stopped")


def test_another_time_or_order_of_files_is_no_change(config: Config, place: Path) -> None:
    photos = sorted((place / "photos").rglob("*.png"), reverse=True)
    for number, photo in enumerate(photos):  # made anew, last one first
        content = photo.read_bytes()
        photo.unlink()
        photo.write_bytes(content)
        os.utime(photo, (number, number))
    resume(config, place / "run")
    assert log_of(place / "run").count("their content is that of data_sha256.txt") == 2


def test_files_that_come_and_go_are_named(config: Config, place: Path) -> None:
    (place / "photos/test/cat/16.png").rename(place / "photos/test/cat/new.png")
    with pytest.raises(RunError) as error:
        resume(config, place / "run")
    assert "1 file gone: 'test/cat/16.png'" in str(error.value)
    assert "1 file new: 'test/cat/new.png'" in str(error.value)


def test_a_run_without_digests_records_them_and_says_so(config: Config, place: Path) -> None:
    (place / "run/data_sha256.txt").unlink()
    resume(config, place / "run")
    assert "the run had no digests to compare; they are in data_sha256.txt" in log_of(place / "run")
    assert recorded_digests(place / "run") is not None


def test_a_damaged_record_is_one_message(config: Config, place: Path) -> None:
    record = place / "run/data_sha256.txt"
    record.write_bytes(record.read_bytes()[:-5])
    with pytest.raises(RunError, match=r"data_sha256\.txt is damaged.*delete it"):
        resume(config, place / "run", allow_changes=True)


def test_a_changed_shard_of_a_prepared_set_is_named(tiny_config: Config, tmp_path: Path) -> None:
    data = dataclasses.replace(tiny_config.data, data_dir=str(tmp_path / "sets"), verify=True)
    config = dataclasses.replace(tiny_config, data=data)
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)

    def verify(allow_changes: bool = False) -> verifying.VerifiedData:
        experiment = open_experiment(config, run)
        return verify_data(
            experiment, run, allow_changes=allow_changes, watchdog=Watchdog(stuck_after=0)
        )

    first = verify()
    assert first.to_record is not None
    assert set(first.to_record) == {
        f"digits-{split}.array_record-00000-of-00001" for split in ("train", "test")
    }
    first.record(run)
    assert verify().to_record is None
    (shard,) = (tmp_path / "sets/digits").rglob("digits-train.*")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(RunError, match=f"1 file changed: '{shard.name}'"):
        verify()
    assert verify(allow_changes=True).to_record is not None


def test_without_the_field_nothing_is_read(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "read_content", lambda *_, **__: pytest.fail("it was read"))
    found = verify_data(
        open_experiment(tiny_config, tmp_path),
        tmp_path,
        allow_changes=False,
        watchdog=Watchdog(stuck_after=0),
    )
    found.record(tmp_path)
    assert found == verifying.VerifiedData()
    assert list(tmp_path.iterdir()) == []


def test_a_long_reading_is_announced_and_the_watchdog_hears_of_it(
    tiny_config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(verifying, "_LONG_SECONDS", -1)
    phases: list[str] = []
    monkeypatch.setattr(Watchdog, "note_progress", lambda _, __, phase: phases.append(phase))
    config = photos_config(tiny_config, make_photos(tmp_path / "photos"))
    experiment = open_experiment(config, tmp_path / "run")
    (tmp_path / "run").mkdir()
    verify_data(experiment, tmp_path / "run", allow_changes=False, watchdog=Watchdog(stuck_after=0))
    assert caplog.messages == ["data.verify: reading all 20 files of the data"]
    assert set(phases[:-1]) == {"verifying the data"}
    assert phases[-1] == watchdog.STARTING  # whose patience the compile needs


def test_processes_whose_data_differ_are_told(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exchange(text: str) -> list[str]:
        return [text, re.sub(r"[0-9a-f]{64}", "0" * 64, text)]

    monkeypatch.setattr(agree, "exchange", exchange)
    config = photos_config(tiny_config, make_photos(tmp_path / "photos"))
    experiment = open_experiment(config, tmp_path / "run")
    with pytest.raises(JobError, match="processes of this job differ in the content of the data"):
        verify_data(
            experiment, tmp_path / "run", allow_changes=True, watchdog=Watchdog(stuck_after=0)
        )


PROCESS = """
import sys
from jaxcls.commands import cli
from jaxcls.models import registry
from jaxcls.models.efficientnet import ModelSpec, BlockSpec
registry.SPECS["tiny"] = eval(sys.argv[1])
sys.exit(cli.main(["train", *sys.argv[2:]]))
"""


@pytest.mark.long
def test_two_processes_with_disks_of_their_own(tiny_config: Config, tmp_path: Path) -> None:
    config = dataclasses.replace(photos_config(tiny_config, Path("photos")), num_steps=1)
    text = json.dumps({"config": encode(config)})
    (tmp_path / "config.json").write_text(text)
    for number in "01":
        make_photos(tmp_path / number / "photos")

    def run_job() -> tuple[list[int | None], list[str]]:
        address = free_address()
        spec = repr(registry.model_spec("tiny"))
        command = [sys.executable, "-c", PROCESS, spec, str(tmp_path / "config.json")]
        options = ["--workdir", str(tmp_path / "run"), "--coordinator", address]
        job = [
            subprocess.Popen(
                [*command, *options, "--num-processes", "2", "--process-id", number],
                cwd=tmp_path / number,
                env={**os.environ, "XLA_FLAGS": xla_flags(devices=1)},
                stderr=subprocess.PIPE,
                text=True,
            )
            for number in "01"
        ]
        said = [process.communicate(timeout=240)[1] for process in job]
        return [process.returncode for process in job], said

    draw(tmp_path / "1/photos/train/cat/2.png", 99)
    codes, said = run_job()
    assert codes == [2, 2], said
    assert all("differ in the content of the data" in text for text in said)
    assert not (tmp_path / "run/data_sha256.txt").exists()

    draw(tmp_path / "1/photos/train/cat/2.png", 2)
    codes, said = run_job()
    assert codes == [0, 0], said
    draw(tmp_path / "1/photos/train/cat/2.png", 99)
    codes, said = run_job()
    assert codes == [2, 2], said
    assert "process 1: " in said[0]
    assert all("1 file changed: 'train/cat/2.png'" in text for text in said)
