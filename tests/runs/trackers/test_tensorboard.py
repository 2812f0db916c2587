"""TensorBoard's file, as a reporter writes it."""

import io
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from reporting import CONFIG, EVAL, TRAIN, open_reporter, scalars, values
from tensorboardX.proto import plugin_hparams_pb2
from tensorboardX.record_writer import RecordWriter

from jaxcls.runs.reporter import read_metrics


def test_metrics_go_to_tensorboard_by_training_and_evaluation(tmp_path: Path) -> None:
    with open_reporter(tmp_path, io.StringIO()) as reporter:
        reporter.log(2, TRAIN)
        reporter.evaluated(4, EVAL)
    found = {(tag, step): value for tag, step, value in scalars(tmp_path)}
    assert found["train/loss", 2] == 1.25
    assert found["train/learning_rate", 2] == pytest.approx(0.1)
    assert found["eval/loss", 4] == 0.5
    assert found["eval/top1", 4] == 0.875
    assert found["eval/top5", 4] == 1.0
    assert {tag for tag, _ in found} == {
        "train/learning_rate",
        "train/loss",
        "train/top1",
        "train/top5",
        "train/grad_norm",
        "train/images_per_second",
        "train/data_wait_share",
        "eval/loss",
        "eval/top1",
        "eval/top5",
    }


def test_averages_and_raw_parameters_stand_side_by_side(tmp_path: Path) -> None:
    with open_reporter(tmp_path, io.StringIO()) as reporter:
        reporter.evaluated(4, EVAL | {"raw_loss": 0.75, "raw_top1": 0.5, "raw_top5": 0.9})
    found = {(tag, step): value for tag, step, value in scalars(tmp_path)}
    assert (found["eval/top1", 4], found["eval/raw_top1", 4]) == (0.875, 0.5)
    (row,) = read_metrics(tmp_path / "metrics.csv")
    assert (row["eval_loss"], row["eval_raw_loss"]) == ("0.5", "0.75")


def test_tensorboard_has_the_config_as_hyper_parameters(tmp_path: Path) -> None:
    with open_reporter(tmp_path, io.StringIO()):
        pass
    (start,) = [v for _, v in values(tmp_path) if v.tag == "_hparams_/session_start_info"]
    content = cast(Any, plugin_hparams_pb2).HParamsPluginData.FromString(
        start.metadata.plugin_data.content
    )
    given = content.session_start_info.hparams
    assert given["optimizer.learning_rate"].number_value == CONFIG.optimizer.learning_rate
    assert given["model.name"].string_value == CONFIG.model.name
    assert given["model.remat"].bool_value is False


def test_tensorboard_shows_images(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), np.uint8)
    with open_reporter(tmp_path, io.StringIO()) as reporter:
        reporter.show(0, "first_batch", images)
    (image,) = [v.image for _, v in values(tmp_path) if v.tag == "first_batch"]
    pixels = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    assert (pixels[:5, :7] == images[0]).all()
    assert (pixels[-5:, -7:] == images[1]).all()


@pytest.mark.parametrize("act", ["flush", "write", "close"])
def test_tensorboard_that_cannot_write_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    close = RecordWriter.close
    monkeypatch.setattr(RecordWriter, act, lambda self, *_: [close(self), full()])
    stream = io.StringIO()
    with open_reporter(tmp_path, stream) as reporter:
        for step in range(2, 40):
            reporter.log(step, TRAIN)
    assert stream.getvalue().count("TensorBoard's file has failed") == 1
    assert len(read_metrics(tmp_path / "metrics.csv")) == 38
