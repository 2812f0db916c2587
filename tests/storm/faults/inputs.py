"""What goes wrong with the data, the workers that read them, the loss and other commands' input."""

import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
from damage import DAMAGES, flipped
from ends import require_no_leftovers, require_same_end
from expect import require
from PIL import Image
from process import STATUS_MISTAKE, STATUS_STOPPED, Process, require_done
from trial import FIRST_STEP, ONE, Shape, Storm, Trial

from faults.fault import Fault

_WORKERS = Shape(workers=2)
_SKIPPING = ("--model.name", "storm_network:Spoiled", "--on-non-finite", "skip")


def worker_killed(trial: Trial) -> None:
    """A process that decodes images is killed: it is named, and no step is lost."""
    process = _train_with_workers(trial)
    trial.hit = process.send_to_child(signal.SIGKILL, trial.rng)
    status = process.wait()
    require(status == 0, f"status {status}")
    trial.finish_as_twin(stopped=True)


def worker_stopped(trial: Trial) -> None:
    """A process that decodes images hangs: the training says so after a while, and ends."""
    process = _train_with_workers(trial, "--stuck-after-seconds", "10")
    trial.hit = process.send_to_child(signal.SIGSTOP, trial.rng)
    status = process.wait(within=90)
    require(status in (0, 1, STATUS_MISTAKE, STATUS_STOPPED), f"status {status}")
    require(status == 0 or process.says("reading data"), "the message does not say what hangs")
    trial.finish_as_twin(stopped=True)


def bad_image(trial: Trial) -> None:
    """An image of the data set is damaged: refused with its name, until it is repaired."""
    folder = _photos(trial)
    victim = trial.rng.choice(sorted(folder.glob("*/*.png")))
    good = victim.read_bytes()
    kind = list(DAMAGES)[trial.number % len(DAMAGES)]
    DAMAGES[kind](victim, trial.rng)
    process = trial.start_one(*_photo_options(folder))
    if kind in ("missing", "a folder"):  # then the data set has an image less
        require_done([process])
        return
    process.require_refusal(victim.name)
    victim.write_bytes(good)
    trial.finish(*_photo_options(folder))
    _require_equal_to_twin_with_photos(trial)


def bad_image_skipped(trial: Trial) -> None:
    """As `bad_image`, but the config says to skip it; killed and resumed, it is skipped again."""
    folder = _photos(trial)
    victim = trial.rng.choice(sorted(folder.glob("*/*.png")))
    kinds = ("cut", "emptied", "flipped", "noise")
    DAMAGES[kinds[trial.number % len(kinds)]](victim, trial.rng)
    options = [*_photo_options(folder), "--data.broken", "skip", "--data.max-broken", "0.2"]
    process = trial.start_one(*options)
    trial.wait_for_a_save(process)
    trial.hit = process.kill()
    trial.finish(*options)
    require(victim.name in (trial.run_dir / "log.txt").read_text(), "the log does not name it")
    require_same_end(trial.run_dir, trial.storm.twin(ONE, options))


def data_vanish(trial: Trial) -> None:
    """The data set disappears in mid-run, and comes back: nothing is lost."""
    folder = _photos(trial)
    process = trial.start_one(*_photo_options(folder))
    process.wait_for(FIRST_STEP)
    away = folder.with_name("away")
    folder.rename(away)
    trial.hit = not process.ended()
    status = process.wait()
    require(status in (0, STATUS_MISTAKE), f"status {status}")
    away.rename(folder)
    trial.finish(*_photo_options(folder))
    _require_equal_to_twin_with_photos(trial)


def loss_not_finite(trial: Trial) -> None:
    """The loss diverges: the training stops with the step, and saves nothing after it."""
    process = trial.start_one("--optimizer.learning-rate", "1e30", "--schedule.warmup", "0")
    status = process.wait()
    require(status == STATUS_MISTAKE, f"status {status}")
    require(process.says("at step"), "the message does not name the step")
    folder = trial.run_dir / "checkpoints"
    require(not folder.exists() or max(trial.saved_steps(), default=0) <= 4, "it was saved")


def skipped_and_stopped(trial: Trial) -> None:
    """A training that skips steps without a loss is stopped or killed, and goes on as its twin."""
    process = trial.start_one()
    trial.wait_for_row(process, trial.rng.choice((2, 4, 6, 14, 16, 18, 20)))
    trial.hit = process.send(signal.SIGTERM if trial.number % 2 else signal.SIGKILL)
    status = process.wait()
    require(status in (0, STATUS_STOPPED, -signal.SIGKILL), f"status {status}")
    trial.finish_as_twin(stopped=True)
    log = (trial.run_dir / "log.txt").read_text()
    require("skipped" in log, "the log does not name the skipped steps")


def commands_on_a_damaged_run(trial: Trial) -> None:
    """evaluate, predict, export and runs on a run with damaged files: a result, or one message."""
    trial.begin_at(12)
    files = [path for path in trial.run_dir.rglob("*") if path.is_file() and path.stat().st_size]
    for path in trial.rng.sample(files, 3):
        data = flipped(path.read_bytes(), trial.rng)
        path.write_bytes(data[: trial.rng.choice((len(data), len(data) // 2))])
    for name, arguments in _commands(trial).items():
        status = trial.command(*arguments).wait()
        require(status in (0, 1, STATUS_MISTAKE), f"{name}: status {status}")
        require(status != 1 or name == "evaluate", f"{name}: status {status}")


def commands_interrupted(trial: Trial) -> None:
    """A command is interrupted: 75, or 0, nothing half-written, and all commands work again."""
    trial.begin_at(12)
    name, arguments = trial.rng.choice(list(_commands(trial).items()))
    process = trial.command(*arguments)
    time.sleep(trial.rng.uniform(0.15, 6))
    trial.hit = process.send(trial.rng.choice((signal.SIGTERM, signal.SIGINT, signal.SIGKILL)))
    status = process.wait()
    require(status in (0, STATUS_STOPPED, -signal.SIGKILL), f"{name}: status {status}")
    if status != -signal.SIGKILL:
        require_no_leftovers(trial.folder, trial.run_dir)
    for arguments in _commands(trial, output="again").values():
        require_done([trial.command(*arguments)])
    exported = trial.folder / "export"
    require(
        not exported.exists() or _names(exported) == _names(trial.folder / "again"),
        "half an export",
    )
    trial.finish_as_twin()


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _commands(trial: Trial, *, output: str = "export") -> dict[str, list[str]]:
    """The arguments of commands that read the run; `output` is the folder of the export."""
    run, image = str(trial.run_dir), trial.folder / "image.png"
    if not image.exists():
        _draw_image(image, random.Random(0))
    return {
        "evaluate": ["evaluate", run],
        "predict": ["predict", run, str(image)],
        "export": ["export", run, "-o", str(trial.folder / output)],
        "runs": ["runs", str(trial.folder)],
    }


def _train_with_workers(trial: Trial, *options: str) -> Process:
    (process,) = trial.start(*options)
    require(process.wait_until(lambda: len(process.children()) == 2), "no workers were found")
    time.sleep(trial.rng.uniform(0, 2))
    return process


def _photos(trial: Trial) -> Path:
    """A copy of the photos for this trial alone."""
    return shutil.copytree(_good_photos(trial.storm), trial.folder / "photos")


def _good_photos(storm: Storm) -> Path:
    """A folder of images in two classes."""

    def make() -> Path:
        folder = storm.new_folder("photos")
        for number in range(40):
            path = folder / ("cats", "dogs")[number % 2] / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            _draw_image(path, random.Random(number))
        return folder

    return storm.once("photos", make)


def _require_equal_to_twin_with_photos(trial: Trial) -> None:
    twin = trial.storm.twin(ONE, _photo_options(_good_photos(trial.storm)))
    require_same_end(trial.run_dir, twin, stopped=True)


def _draw_image(path: Path, rng: random.Random) -> None:
    pixels = np.frombuffer(rng.randbytes(12 * 12 * 3), np.uint8).reshape(12, 12, 3)
    Image.fromarray(pixels).save(path)


def _photo_options(folder: Path) -> list[str]:
    return ["--data.source", f"folder:{folder}", "--data.batch-size", "8", "--num-steps", "24"]


FAULTS = {
    "worker-killed": Fault(inject=worker_killed, trials=5, shape=_WORKERS),
    "worker-stopped": Fault(inject=worker_stopped, trials=5, shape=_WORKERS),
    "bad-image": Fault(inject=bad_image, trials=12),
    "bad-image-skipped": Fault(inject=bad_image_skipped, trials=4),
    "data-vanish": Fault(inject=data_vanish, trials=5),
    "loss-not-finite": Fault(inject=loss_not_finite, trials=3),
    "skipped-and-stopped": Fault(inject=skipped_and_stopped, trials=5, options=_SKIPPING),
    "commands-on-a-damaged-run": Fault(inject=commands_on_a_damaged_run, trials=10),
    "commands-interrupted": Fault(inject=commands_interrupted, trials=10),
}
