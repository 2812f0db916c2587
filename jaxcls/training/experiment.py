"""What a training works on: its config with every field filled in, and its two splits."""

import dataclasses
from typing import Any

from jaxcls.config import Config, encode
from jaxcls.config.decoding import flatten
from jaxcls.data.source import Source
from jaxcls.data.sources import open_source
from jaxcls.models.own_code import source_code
from jaxcls.pretrained.resolve import info_for, resolve
from jaxcls.runs.directory import RunInfo, recorded_info
from jaxcls.system.paths import RunPath
from jaxcls.training.class_balance import needs_class_counts, with_weights_from_file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """What a training works on.

    Attributes:
      info: the record of the run, with the config resolved.
      source: the training split.
      eval_source: the evaluation split.
      recorded: the record that an earlier training left in the run's directory, if there was one.
    """

    info: RunInfo
    source: Source
    eval_source: Source
    recorded: RunInfo | None

    @property
    def config(self) -> Config:
        """The config with every field filled in."""
        return self.info.config

    def facts(self) -> dict[str, Any]:
        """What must be the same in all processes of a job, each fact by its name."""
        described = self.info.to_json()
        del described["config"]
        config = flatten(encode(self.config))  # so that a message names the one field that differs
        return {**described, "evaluation data": self.eval_source.identity, **config}


def open_experiment(config: Config, run: RunPath) -> Experiment:
    """Opens what a training in the directory `run` works on.

    Raises:
      UserError: the run's record is damaged, or the network, the weights or the data of the config
        cannot be used.
    """
    recorded = recorded_info(run)
    weights = info_for(config, recorded=recorded)
    config = resolve(config, weights)
    source = open_source(config.data, config.data.train_split)
    eval_source = open_source(config.data, config.data.eval_split)
    loss = with_weights_from_file(config.loss, source.class_names)
    config = dataclasses.replace(config, loss=loss)
    info = RunInfo(
        config=config,
        class_names=source.class_names,
        data=source.identity,
        weights=weights and dataclasses.replace(weights, class_names=None),
        code=source_code(config.model.name),
        class_counts=_class_counts(config, source, recorded),
    )
    return Experiment(info=info, source=source, eval_source=eval_source, recorded=recorded)


def _class_counts(
    config: Config, source: Source, recorded: RunInfo | None
) -> tuple[int, ...] | None:
    """Counts the examples of each class if the training depends on it; a resumed run knows them."""
    if not needs_class_counts(config):
        return None
    if recorded and recorded.class_counts and recorded.data == source.identity:
        return recorded.class_counts
    return tuple(source.class_counts().tolist())
