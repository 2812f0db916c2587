"""What a training works on: its record, with the config resolved, and its two splits."""

import dataclasses

from jaxcls.config import Config
from jaxcls.data.source import Source
from jaxcls.data.sources import open_source
from jaxcls.pretrained.resolve import info_for, resolve
from jaxcls.runs.directory import RunInfo, recorded_info
from jaxcls.system.paths import RunPath


def open_experiment(config: Config, run: RunPath) -> tuple[RunInfo, Source, Source]:
    """What a training in `run` works on: its record, with the config resolved, and its two splits.

    Raises:
      UserError: the run's record is damaged, or the network, the weights or the data of the config
        cannot be used.
    """
    weights = info_for(config, recorded=recorded_info(run))
    config = resolve(config, weights)
    source = open_source(config.data, config.data.train_split)
    eval_source = open_source(config.data, config.data.eval_split)
    info = RunInfo(
        config=config,
        class_names=source.class_names,
        data=source.identity,
        weights=weights and dataclasses.replace(weights, class_names=None),
    )
    return info, source, eval_source
