"""The folders of a run's steps: which are kept, replaced and deleted."""

import json
from pathlib import Path
from typing import Any

import pytest
from saved_states import (
    METADATA,
    READS_DAMAGED,
    assert_equal,
    data_file,
    flip_bit,
    make_state,
    save_steps,
    template_of,
    truncate,
)

from jaxcls.runs import step_folders
from jaxcls.runs.checkpoint import CheckpointError, Checkpoints
from jaxcls.runs.directory import RunLostError

pytestmark = READS_DAMAGED


def test_the_latest_and_the_best_are_kept(tmp_path: Path) -> None:
    metrics = {1: 0.5, 2: 0.9, 3: None, 4: 0.7, 5: 0.6}
    with Checkpoints(tmp_path, keep_latest=2, keep_best=1) as checkpoints:
        for step, metric in metrics.items():
            checkpoints.save(step, make_state(step), metadata={"step": step}, metric=metric)
            checkpoints.wait()
        assert checkpoints.steps() == [2, 4, 5]
        assert checkpoints.restore(make_state()).step == 5
        assert checkpoints.restore(make_state(), "best").step == 2
        assert checkpoints.metadata("best") == {"step": 2}
        truncate(tmp_path / "2")
        assert checkpoints.restore(make_state(), "best").step == 4
        flip_bit(tmp_path / "4" / "_CHECKPOINT_METADATA", 300)
        assert checkpoints.metadata("latest") == {"step": 5}
        truncate(tmp_path / "2")
        assert checkpoints.restore(make_state(), "best").step == 5
        checkpoints.save(6, make_state(6), metadata={}, metric=0.1)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 4, 5, 6]  # 4 cannot be read, so it does not count


def test_a_step_that_could_not_be_restored_takes_no_place_and_is_not_deleted(
    tmp_path: Path,
) -> None:
    with Checkpoints(tmp_path, keep_latest=3, keep_best=1) as checkpoints:
        for step, score in ((1, 0.8), (2, 0.5), (3, 0.9)):
            checkpoints.save(step, make_state(step), metadata={}, metric=score)
    flip_bit(data_file(tmp_path / "3"), 10_000)
    with Checkpoints(tmp_path, keep_latest=1, keep_best=1) as checkpoints:
        assert checkpoints.restore(template_of(make_state())).step == 2
        checkpoints.save(4, make_state(4), metadata={}, metric=0.6)
        checkpoints.wait()
        assert checkpoints.steps() == [1, 3, 4]  # the best, the damaged one and the newest
        checkpoints.save(3, make_state(3), metadata={}, metric=0.9)  # now it is good
        checkpoints.wait()
        assert checkpoints.steps() == [3, 4]


def test_a_deletion_that_is_cut_off_leaves_no_half_of_a_step(
    tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    class Killed(BaseException):
        pass

    def half_of(folder: Any) -> None:
        data_file(Path(folder)).unlink()
        raise Killed

    checkpoints = Checkpoints(tmp_path, keep_latest=1)
    for step in (1, 2):
        checkpoints.save(step, make_state(step), metadata=METADATA)
    with monkeypatch.context() as patched:
        patched.setattr(type(checkpoints.directory), "rmtree", half_of)
        with pytest.raises(Killed):
            checkpoints.wait()
    assert checkpoints.steps() == [2]
    save_steps(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["2", "3"]
    assert not caplog.records


def test_what_is_left_of_a_step_is_swept_but_not_a_damaged_one(tmp_path: Path) -> None:
    save_steps(tmp_path, 2, 3)
    (tmp_path / "1").mkdir()  # as an older version of jaxcls left it
    (tmp_path / "1" / "state").mkdir()
    (tmp_path / "2" / "_CHECKPOINT_METADATA").unlink()  # of a step that is in the index
    save_steps(tmp_path, 4)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["2", "3", "4"]


def test_a_step_that_is_there_is_kept_if_good_and_the_same(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    before = data_file(tmp_path / "2").stat().st_mtime_ns
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, make_state(2), metadata=METADATA)
        checkpoints.wait()
        assert data_file(tmp_path / "2").stat().st_mtime_ns == before
        checkpoints.save(2, make_state(9), metadata=METADATA)
        assert_equal(checkpoints.restore(make_state()).state, make_state(9))


def test_nothing_older_goes_before_the_newer_is_verified(
    tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    read_back = Checkpoints._read_back

    def damage_first(self: Checkpoints, step: int, record: Any) -> str | None:
        flip_bit(data_file(tmp_path / str(step)), 10_000)  # after the commit
        return read_back(self, step, record)

    save_steps(tmp_path, 1, keep_latest=1)
    with Checkpoints(tmp_path, keep_latest=1) as checkpoints:
        monkeypatch.setattr(Checkpoints, "_read_back", damage_first)
        checkpoints.save(2, make_state(2), metadata={})
        with pytest.raises(CheckpointError, match=r"2 is damaged: .*set aside as 2\.dam"):
            checkpoints.save(3, make_state(3), metadata={})
        monkeypatch.undo()
        assert checkpoints.steps() == [1]
        assert checkpoints.restore(make_state()).step == 1
        checkpoints.save(3, make_state(3), metadata={})
        checkpoints.wait()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3", "verified.json"]


def test_a_score_is_added_without_writing_the_arrays_again(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("d/*")}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.set_metric(1, 0.5)
        restored = checkpoints.restore(make_state(), "best")
        assert (restored.step, restored.metric) == (1, 0.5)
        with pytest.raises(CheckpointError, match="3 cannot be used: it is missing"):
            checkpoints.set_metric(3, 0.5)
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("d/*")}


@pytest.mark.parametrize("rest", [None, "half-written"])
def test_a_replacement_that_is_cut_off_loses_nothing(tmp_path: Path, rest: str | None) -> None:
    save_steps(tmp_path, 1, 2)
    (tmp_path / "2").rename(tmp_path / "2.replaced")
    if rest:
        (tmp_path / "2").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.put_back_replaced()
        assert checkpoints.steps() == [1, 2]
        assert checkpoints.restore(make_state()).step == 2
        (tmp_path / "1.replaced").mkdir()  # 1 is there: it was replaced
        checkpoints.put_back_replaced()
        assert checkpoints.restore(make_state(), 1).step == 1


def test_a_start_sweeps_what_a_killed_training_left(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, 2)
    left = ("3.orbax-checkpoint-tmp", "0.pruned", "2.replaced")
    kept = ("1", "1.replaced", "2", "2.damaged", "mine.pruned", "verified.json")
    for name in (*left, "1.replaced", "2.damaged", "mine.pruned"):
        (tmp_path / name / "folder").mkdir(parents=True)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.delete_unfinished(checkpoints.restore(make_state()).step)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_old_steps_are_deleted_although_the_index_cannot_be_written(
    tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    write_whole = step_folders.write_whole

    def write(path: Any, content: str) -> None:
        if (tmp_path / "1").exists():
            raise OSError(28, "no space before a step is deleted")
        write_whole(path, content)

    save_steps(tmp_path, 1, keep_latest=1)
    monkeypatch.setattr(step_folders, "write_whole", write)
    save_steps(tmp_path, 2, keep_latest=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "verified.json"]
    assert json.loads((tmp_path / "verified.json").read_text()) == {"steps": [2]}
    assert not caplog.records


def test_a_run_that_was_lost_is_not_tidied_up(tmp_path: Path) -> None:
    save_steps(tmp_path, 1, keep_latest=1)

    def run() -> None:
        with Checkpoints(tmp_path, keep_latest=1) as checkpoints:
            checkpoints.save(2, make_state(2), metadata={})
            raise RunLostError("another training has taken over the run")

    with pytest.raises(RunLostError):
        run()
    assert (tmp_path / "1").is_dir()
