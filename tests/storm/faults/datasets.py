"""Data sets and configs that are damaged, or have changed since a run began."""

import json
import random
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

from damage import DAMAGES, Damage
from expect import require
from process import STATUS_MISTAKE, STATUS_STOPPED
from trial import FIRST_STEP, Trial

from faults.fault import Fault

_CHANGES = (  # options, and what the message must name
    (("--optimizer.learning-rate", "0.01"), "optimizer.learning_rate"),
    (("--optimizer.ema-decay", "0.5"), "optimizer.ema_decay"),
    (
        ("--optimizer.name", "adamw", "--optimizer.options.momentum", "None"),
        "optimizer.name",
    ),
    (("--data.batch-size", "16"), "data.batch_size"),
    (("--data.train-split", "train[:90%]"), "data.train_split"),
    (("--model.options.width", "16"), "model.options"),
    (("--num-steps", "30"), "num_steps"),
    (("--seed", "1"), "seed"),
    (("--model.options.width", "16", "--allow-changes"), "does not fit the network"),
)


def shard_damaged(trial: Trial) -> None:
    """The file with the training data is damaged before a start: refused, or it does not matter."""
    if trial.number % 2:
        trial.begin_at(8)
    folder = _digits(trial)
    shard, kind = _shard(folder), list(_DAMAGES)[trial.number // 2 % len(_DAMAGES)]
    good = shard.read_bytes()
    _DAMAGES[kind](shard, trial.rng)
    process = trial.start_one(*_options(trial))
    if process.wait() == 0:
        trial.require_equal_to_twin()
        return
    process.require_refusal(str(folder))
    if shard.is_dir():
        shard.rmdir()
    shard.write_bytes(good)
    trial.finish_as_twin(*_options(trial))


def shard_damaged_while_it_trains(trial: Trial) -> None:
    """The file with the training data is damaged in mid-run, and repaired before the next start."""
    shard = _shard(_digits(trial))
    good = shard.read_bytes()
    process = trial.start_one(*_options(trial))
    process.wait_for(FIRST_STEP)
    kind = ("cut", "emptied", "noise")[trial.number % 3]
    _DAMAGES[kind](shard, trial.rng)
    trial.hit = not process.ended()
    status = process.wait()
    require(status in (0, STATUS_MISTAKE), f"{kind}: status {status}")
    shard.write_bytes(good)
    trial.finish_as_twin(*_options(trial), stopped=True)


def label_out_of_range(trial: Trial) -> None:
    """Examples have labels for which there is no class."""
    folder = _digits(trial)
    _name_classes(folder, [str(number) for number in range(trial.rng.randint(2, 9))])
    trial.start_one(*_options(trial)).require_refusal("label", "classes")


def classes_changed(trial: Trial) -> None:
    """Between two starts a class is added, removed or renamed: refused, and the run is kept."""
    trial.begin_at(12)
    folder = _digits(trial)
    good = [str(number) for number in range(10)]
    changed = ([*good, "ten"], good[:-1], ["zero", *good[1:]], good[::-1])[trial.number % 4]
    _name_classes(folder, changed)
    trial.start_one(*_options(trial)).require_refusal("class", str(trial.run_dir))
    _name_classes(folder, good)
    trial.finish_as_twin(*_options(trial))


def config_changed(trial: Trial) -> None:
    """Between two starts a field of the config changes: it is named, and the run is kept."""
    trial.begin_at(12)
    options, named = _CHANGES[trial.number % len(_CHANGES)]
    trial.start_one(*options).require_refusal(named)
    require(trial.saved_steps() == [4, 8, 12], "checkpoints were written or deleted")
    trial.finish_as_twin()


def config_changed_harmlessly(trial: Trial) -> None:
    """Between two starts fields change that decide nothing."""
    process = trial.start_one("--data.num-threads", "1", "--data.prefetch", "3")
    process.wait_for(FIRST_STEP)
    trial.hit = process.send(signal.SIGTERM)
    require(process.wait() in (0, STATUS_STOPPED), f"{process.output}")
    trial.finish_as_twin("--data.num-threads", "3", "--checkpoint.keep-latest", "1", stopped=True)


def _digits(trial: Trial) -> Path:
    """A copy of the digits for this trial alone; `_options` names it."""
    trial.storm.twin(trial.shape)  # has prepared them
    copy = trial.folder / "data" / "digits"
    shutil.copytree(trial.storm.folder / "cache" / "jaxcls" / "digits", copy)
    (version,) = copy.iterdir()
    return version


def _options(trial: Trial) -> list[str]:
    return ["--data.data-dir", str(trial.folder / "data")]


def _shard(folder: Path) -> Path:
    (shard,) = folder.glob("*-train.*")
    return shard


def _name_classes(folder: Path, names: list[str]) -> None:
    """Changes the names of the classes, but not the labels of the examples."""
    (folder / "label.labels.txt").write_text("".join(f"{name}\n" for name in names))
    features = folder / "features.json"
    content = json.loads(features.read_text())
    label = content["featuresDict"]["features"]["label"]["classLabel"]
    label["numClasses"] = str(len(names))
    features.write_text(json.dumps(content))


def _exchange(path: Path, rng: random.Random) -> None:
    del rng
    shutil.copyfile(path.with_name(path.name.replace("-train.", "-test.")), path)


_DAMAGES: Mapping[str, Damage] = {**DAMAGES, "another file": _exchange}


FAULTS = {
    "shard-damaged": Fault(inject=shard_damaged, trials=14),
    "shard-damaged-while-it-trains": Fault(inject=shard_damaged_while_it_trains, trials=9),
    "label-out-of-range": Fault(inject=label_out_of_range, trials=4),
    "classes-changed": Fault(inject=classes_changed, trials=4),
    "config-changed": Fault(inject=config_changed, trials=9),
    "config-changed-harmlessly": Fault(inject=config_changed_harmlessly, trials=2),
}
