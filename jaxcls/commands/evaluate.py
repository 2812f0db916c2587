"""`jaxcls evaluate`: the loss and accuracy of a network; also per class and per example."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxcls.commands.common import (
    DEFAULT_JOB,
    ClassNames,
    WeightsEma,
    read_step,
    start_job,
    take_first,
    validate_data,
)
from jaxcls.commands.options import parse
from jaxcls.config import DataConfig
from jaxcls.distributed.job import JobOptions
from jaxcls.system.file_names import printable
from jaxcls.system.output import put, say

SHARES = ("map", "micro_f1", "macro_f1", "top1", "top5", "balanced_top1")  # in [0, 1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Evaluates MODEL (a run, a preset or a weights file) on the run's data or on other data."""

    data: DataConfig
    step: str = "latest"
    """Checkpoint of a run: latest, best (by top-1 during training) or the number of a step."""
    split: str | None = None
    """Split to evaluate, in TFDS syntax (None: data.eval_split)."""
    per_class: bool = False
    """Also print a table of the classes, lowest accuracy first."""
    predictions: Annotated[Path | None, tyro.conf.arg(metavar="FILE.csv")] = None
    """File to write, with one row per example: its class and the five best guesses."""
    class_names: ClassNames = None
    ema: WeightsEma = True
    json: bool = False
    """Print one JSON object as the last line."""
    job: Annotated[JobOptions, tyro.conf.arg(name="")] = DEFAULT_JOB


def run(arguments: list[str]) -> int:
    """Runs `jaxcls evaluate MODEL …`; returns the exit status."""
    prog = "jaxcls evaluate MODEL"
    name, rest = take_first(
        arguments, prog, "a run, a preset, hf:OWNER/REPO or a weights file", example="runs/digits"
    )
    own_data = DataConfig()
    if name is not None:
        from jaxcls.inference.open_weights import data_of

        own_data = data_of(name)
    options = parse(Evaluate, prog, rest, default=Evaluate(data=own_data))
    from jaxcls.pretrained.class_names import read_class_names

    step, data = read_step(options.step), _fill_in(validate_data(options.data), own_data)
    names = options.class_names and read_class_names(options.class_names)
    start_job(options.job)
    from jaxcls.distributed.agree import is_main_process
    from jaxcls.inference.classifier import ImageClassifier
    from jaxcls.inference.multi_label_report import MultiLabelEvaluation, describe_labels
    from jaxcls.inference.report import describe_classes, require_writable, whole_file
    from jaxcls.runs.directory import save_evaluation
    from jaxcls.system.paths import run_path

    assert name is not None, "--help has ended the program"
    if options.predictions is not None:
        require_writable(options.predictions)
    classifier = ImageClassifier.load(name, step=step, ema=options.ema, class_names=names)
    evaluation = None
    if options.per_class or options.predictions is not None:
        evaluation = classifier.examine(data, split=options.split)
        metrics = evaluation.metrics
    else:
        metrics = classifier.evaluate(data, split=options.split)
    if not is_main_process():
        return 0
    if classifier.step is not None and data.source == own_data.source:
        save_evaluation(run_path(name), metrics)
    say(_describe_metrics(metrics))
    report: dict[str, Any] = dict(metrics)
    if evaluation is not None and options.per_class:
        if isinstance(evaluation, MultiLabelEvaluation):
            results = evaluation.per_class()
            say(f"\n{describe_labels(results)}")
        else:
            results = evaluation.per_class()
            say(f"\n{describe_classes(results)}")
        report["classes"] = [dataclasses.asdict(result) for result in results]
    if evaluation is not None and options.predictions is not None:
        with whole_file(options.predictions) as file:
            evaluation.write_predictions(file)
        say(f"wrote {printable(options.predictions)}")
    if options.json:
        put(json.dumps(report))
    return 0


def _fill_in(data: DataConfig, own: DataConfig) -> DataConfig:
    """Fills in the fields that are left to the network from the network's own data config."""
    automatic = {"image_size": 0, "canvas_size": 0, "crop_fraction": 0, "interpolation": "auto"}
    fields = [name for name, value in automatic.items() if getattr(data, name) == value]
    return dataclasses.replace(data, **{name: getattr(own, name) for name in fields})


def _describe_metrics(metrics: Mapping[str, float]) -> str:
    parts = [f"{metrics['num_examples']} examples"]
    if "loss" in metrics:
        shares = [f"{name} {metrics[name]:.2%}" for name in SHARES if name in metrics]
        parts = [*shares, f"loss {metrics['loss']:.4f}", *parts]
    else:
        parts.append("accuracy not computed: the data has classes the network was not trained on")
    step = f"step {metrics['step']}: " if "step" in metrics else ""
    return step + ", ".join(parts)
