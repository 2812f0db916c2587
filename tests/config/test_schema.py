import contextlib
import dataclasses
import inspect
import json
import math
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcls.config import (
    SCHEMA_VERSION,
    CheckpointConfig,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    changed_fields,
    decode,
    encode,
    load_config,
    operational_fields,
)
from jaxcls.config.augment import CenterCrop, Cutout, RandomCrop, RandomFlip
from jaxcls.config.decoding import ConfigError, flatten

SHARES = st.floats(0, 1)
DROP_RATE = st.floats(0, 1, exclude_max=True)
DROP_RATES = DROP_RATE | st.lists(DROP_RATE, min_size=1, max_size=4).map(tuple)
COUNTS = st.integers(1, 10**6)
RATES = st.floats(0, 1e6)
SEEDS = st.integers(0, 2**32 - 1)

# All kinds of entries are tested with the schema of the augmentation.
AUGMENTATIONS = st.tuples(
    st.builds(RandomFlip, horizontal=SHARES),
    st.sampled_from([CenterCrop(), RandomCrop()]),
    st.builds(Cutout, size=SHARES | st.tuples(SHARES, SHARES)),
)


def optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


@st.composite
def valid_configs(draw: st.DrawFn) -> Config:
    """Any config that obeys the ranges and the rules between fields."""
    group, groups, micro_batches = (draw(st.integers(1, 8)) for _ in range(3))
    warmup = draw(SHARES)
    # 1 - warmup rounds: stay below it, so that the sum of both is at most 1.
    hold = draw(st.floats(0, max(0.0, 1 - warmup - 1e-9)))
    in_steps = draw(st.booleans())
    return Config(
        model=draw(
            st.builds(
                ModelConfig,
                name=st.text().filter(lambda name: ":" not in name),  # one names a module
                dropout=DROP_RATES,
                drop_path=DROP_RATES,
                batch_norm=st.sampled_from(["global", group]),
                batch_norm_momentum=SHARES,
                remat=st.booleans(),
            )
        ),
        data=draw(
            st.builds(
                DataConfig,
                source=st.text(),
                data_dir=optional(st.text()),
                train_split=st.text(),
                eval_split=st.text(),
                batch_size=st.just(group * groups * micro_batches),
                image_size=COUNTS,
                canvas_size=COUNTS,
                crop_fraction=st.floats(0.01, 1),
                last_batch=st.sampled_from(["drop", "straddle"]),
                num_workers=st.integers(0, 64),
                num_threads=COUNTS,
                prefetch=COUNTS,
            )
        ),
        augment=draw(AUGMENTATIONS),
        loss=draw(
            st.builds(
                LossConfig, name=st.sampled_from(["softmax", "sigmoid"]), label_smoothing=SHARES
            )
        ),
        optimizer=draw(
            st.builds(
                OptimizerConfig,
                name=st.text(),
                learning_rate=RATES,
                options=st.dictionaries(
                    st.text(),
                    st.booleans()
                    | st.integers()
                    | st.floats(allow_nan=False, allow_infinity=False)
                    | st.text(),
                ),
                weight_decay=RATES,
                clip_norm=optional(RATES),
                micro_batches=st.just(micro_batches),
                ema_decay=SHARES,
            )
        ),
        schedule=draw(
            st.builds(
                ScheduleConfig,
                name=st.sampled_from(["warmup_hold_cosine", "cosine", "constant", "exponential"]),
                start_learning_rate=RATES,
                warmup=st.just(warmup),
                hold=st.just(hold),
                decay_rate=SHARES,
                decay_epochs=st.floats(1e-6, 1e6),
            )
        ),
        checkpoint=draw(
            st.builds(
                CheckpointConfig,
                every_steps=optional(COUNTS),
                keep_latest=COUNTS,
                keep_best=st.integers(0, 100),
            )
        ),
        compute_dtype=draw(st.sampled_from(["float32", "bfloat16", "float64"])),
        seed=draw(SEEDS),
        num_epochs=None if in_steps else draw(st.floats(1e-6, 1e6)),
        num_steps=draw(COUNTS) if in_steps else None,
        eval_every_steps=draw(optional(COUNTS)),
        log_every_steps=draw(COUNTS),
    )


def valid(**changes: Any) -> dict[str, Any]:
    """An encoded config that is valid but for the changes, given by dotted names."""
    values = encode(Config(num_steps=10))
    for field, value in changes.items():
        *groups, name = field.split(".")
        section = values
        for group in groups:
            section = section[group]
        section[name] = value
    return values


def error_of(values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        decode(values)
    return str(caught.value)


LEAVES = sorted(flatten(dataclasses.asdict(Config())) | {"optimizer.options": {}})
NAMES = sorted({part for leaf in LEAVES for part in leaf.split(".")} | {"schema_version"})
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(valid_configs())
def test_a_valid_config_survives_json_unchanged(config: Config) -> None:
    written = json.dumps(encode(config), allow_nan=False)
    assert decode(json.loads(written)) == config


@settings(max_examples=150, deadline=None)
@given(JUNK)
def test_any_json_decodes_or_raises_a_config_error(values: Any) -> None:
    config = None
    with contextlib.suppress(ConfigError):
        config = decode(values)
    if config:
        assert decode(encode(config)) == config


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(LEAVES), JUNK | st.just(10**400))
def test_any_json_in_one_field_is_taken_or_the_error_names_the_field(field: str, junk: Any) -> None:
    config, complaint = None, ""
    try:
        config = decode(valid(**{field: junk}))
    except ConfigError as error:
        complaint = str(error)
    if config:
        assert decode(encode(config)) == config
    else:
        assert field.rpartition(".")[2] in complaint


def test_absent_fields_take_their_defaults() -> None:
    assert decode({"num_steps": 3}) == Config(num_steps=3)
    assert decode({"num_steps": 3, "model": {"name": "tiny"}}) == Config(
        num_steps=3, model=ModelConfig(name="tiny")
    )


def test_the_encoding_carries_the_schema_version() -> None:
    assert encode(Config(num_steps=1))["schema_version"] == SCHEMA_VERSION


def test_a_config_of_a_newer_jaxcls_is_refused() -> None:
    message = error_of(valid(schema_version=SCHEMA_VERSION + 1))
    assert message.startswith("schema_version")
    assert "use a newer jaxcls" in message


@pytest.mark.parametrize("version", [0, -1, True, "1", None, 1.0])
def test_a_schema_version_that_is_no_version_is_refused(version: Any) -> None:
    assert error_of(valid(schema_version=version)).startswith("schema_version: expected a whole")


def test_whole_numbers_become_floats_where_floats_are_meant() -> None:
    config = decode(
        valid(**{"optimizer.learning_rate": 1, "optimizer.options": {"a": 2, "b": True}})
    )
    assert type(config.optimizer.learning_rate) is float
    assert config.optimizer.options == {"a": 2, "b": True}
    assert config.optimizer.options["b"] is True


@pytest.mark.parametrize(
    ("field", "value", "parts"),
    [
        ("data.batch_size", "64", ("a whole number", "'64' (str)")),
        ("data.batch_size", 64.0, ("a whole number", "64.0 (float)")),
        ("data.batch_size", True, ("a whole number", "True (bool)")),
        ("data.batch_size", 0, ("at least 1", "0")),
        ("data.num_workers", -1, ("at least 0", "-1")),
        ("data.crop_fraction", 0.001, ("0 or at least 0.01", "0.001")),
        ("data.source", None, ("a text", "None (NoneType)")),
        ("data.last_batch", "dorp", ("'dorp'", "drop, straddle", "did you mean 'drop'?")),
        ("model.remat", 1, ("True or False", "1 (int)")),
        ("model.dropout", 1.5, ("at least 0 and below 1", "1.5")),
        ("model.dropout", 1, ("at least 0 and below 1", "1.0")),
        ("model.drop_path", 1, ("at least 0 and below 1", "1.0")),
        ("loss.label_smoothing", 1.5, ("between 0 and 1", "1.5")),
        ("model.batch_norm", "globl", ("'globl'", "global", "did you mean 'global'?")),
        ("model.batch_norm", 0, ("at least 1", "0")),
        ("model", "efficientnetv2_b0", ("a group of fields", "'efficientnetv2_b0' (str)")),
        ("optimizer.options", [1], ("names with values", "[1] (list)")),
        ("optimizer.options", {"momentum": None}, (".momentum", "a number", "None (NoneType)")),
        ("optimizer.options", {"momentum": math.nan}, (".momentum", "finite", "nan")),
        ("optimizer.clip_norm", -1, ("at least 0", "-1.0")),
        ("optimizer.learning_rate", math.inf, ("finite", "inf")),
        ("optimizer.learning_rate", math.nan, ("finite", "nan")),
        ("schedule.name", "cosin", ("'cosin'", "exponential", "did you mean 'cosine'?")),
        ("compute_dtype", "float16", ("'float16'", "bfloat16")),
        ("seed", -1, ("between 0 and 4294967295", "-1")),
        ("seed", 2**32, ("between 0 and 4294967295", "4294967296")),
        ("num_steps", 2.5, ("a whole number", "2.5 (float)")),
    ],
)
def test_a_wrong_value_is_named_with_its_field_and_what_is_allowed(
    field: str, value: Any, parts: tuple[str, ...]
) -> None:
    message = error_of(valid(**{field: value}))
    assert message.startswith(field)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("field", "hint"),
    [
        ("num_step", "did you mean 'num_steps'?"),
        ("optimizer.learning_rat", "did you mean 'optimizer.learning_rate'?"),
        ("data.batchsize", "did you mean 'data.batch_size'?"),
        ("xyz", ""),
    ],
)
def test_an_unknown_field_is_named_with_the_nearest_one(field: str, hint: str) -> None:
    message = error_of(valid(**{field: 1}))
    assert message.startswith(f"unknown field {field}")
    assert hint in message
    assert ("did you mean" in message) == bool(hint)


@pytest.mark.parametrize("values", [None, [], "config", 3, [("num_steps", 3)]])
def test_what_is_no_mapping_is_no_config(values: Any) -> None:
    assert error_of(values).startswith("config: expected a group of fields")


@pytest.mark.parametrize("length", [{}, {"num_epochs": 1.0, "num_steps": 1}])
def test_epochs_or_steps_are_given_exactly_once(length: dict[str, Any]) -> None:
    message = error_of(length)
    assert message.startswith("num_epochs, num_steps: give exactly one of the two")
    assert "--num-epochs None" in message


def test_warmup_and_hold_share_the_steps() -> None:
    shares = {"schedule.warmup": 0.6, "schedule.hold": 0.5}
    message = error_of(valid(**shares))
    assert message.startswith("schedule.warmup, schedule.hold")
    assert "0.6 + 0.5" in message
    assert decode(valid(**shares, **{"schedule.name": "cosine"})).schedule.hold == 0.5
    assert decode(valid(**{"schedule.warmup": 0.5, "schedule.hold": 0.5})).schedule.hold == 0.5


def test_micro_batches_divide_the_batch() -> None:
    message = error_of(valid(**{"data.batch_size": 64, "optimizer.micro_batches": 3}))
    assert message == "data.batch_size: 64 does not split evenly over 3 micro-batches; use 63 or 66"


def test_repeats_divide_the_batch() -> None:
    message = error_of(valid(**{"data.batch_size": 64, "data.repeats": 3}))
    assert message == "data.repeats: 3 does not divide data.batch_size 64"
    assert decode(valid(**{"data.batch_size": 64, "data.repeats": 4})).data.repeats == 4


def test_worker_processes_have_no_cache() -> None:
    message = error_of(valid(**{"data.cache_gib": 1, "data.num_workers": 2}))
    assert message.startswith("data.cache_gib, data.num_workers: worker processes do not share")


@pytest.mark.parametrize("color", ["white", "#fff", "#12345g", "1234567"])
def test_the_background_is_a_color(color: str) -> None:
    message = error_of(valid(**{"data.background": color}))
    assert message == f"data.background: must look like #[0-9a-fA-F]{{6}}, got {color!r}"


def test_batch_norm_groups_divide_a_micro_batch() -> None:
    changes = {"data.batch_size": 64, "optimizer.micro_batches": 4, "model.batch_norm": 32}
    message = error_of(valid(**changes))
    assert message.startswith("model.batch_norm: groups of 32 do not divide the 16 examples")
    assert decode(valid(**changes | {"model.batch_norm": 8})).model.batch_norm == 8


STAGES = {
    "num_steps": None,
    "num_epochs": 6.0,
    "stage_epochs": [1, 2, 3],
    "data.image_size": 32,
    "data.stage_image_sizes": [16, 16, 32],
    "model.dropout": [0.1, 0.2, 0.3],
    "augment": [{"op": "RandomCrop"}, {"op": "Cutout", "size": [0.1, 0.2, 0.3]}],
}


def test_stages_may_set_sizes_rates_and_strengths() -> None:
    config = decode(valid(**STAGES))
    assert config.stage_epochs == (1.0, 2.0, 3.0)
    assert config.data.stage_image_sizes == (16, 16, 32)
    assert config.model.dropout == (0.1, 0.2, 0.3)
    assert decode(encode(config)) == config
    # A single number holds in all stages; without a common number of stages each has its own.
    assert decode(valid(**STAGES | {"model.drop_path": 0.1})).model.drop_path == 0.1
    apart = {"stage_epochs": [], "data.stage_image_sizes": [], "model.drop_path": [0.1, 0.2]}
    assert decode(valid(**STAGES | apart)).model.drop_path == (0.1, 0.2)
    # The size of the weights or the network is not known yet.
    assert decode(valid(**STAGES | {"data.image_size": 0})).data.image_size == 0


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"data.stage_image_sizes": [16, 48, 32]},
            "data.stage_image_sizes: sizes must not fall from stage to stage, got [16, 48, 32]",
        ),
        (
            {"data.stage_image_sizes": [16, 24, 28]},
            "data.stage_image_sizes: the last of [16, 24, 28] must be 32, the shorter side of "
            "data.image_size, which is the size of evaluation",
        ),
        (
            {"data.stage_image_sizes": [16, 32]},
            "data.stage_image_sizes: [16, 32] has 2 entries, one per stage, but stage_epochs "
            "[1.0, 2.0, 3.0] has 3",
        ),
        ({"data.stage_image_sizes": [0, 32, 32]}, "data.stage_image_sizes.0: must be at least 1, "),
        ({"stage_epochs": [1, 5, -1]}, "stage_epochs.2: must be at least 1e-06, got -1.0"),
        (
            {"stage_epochs": [1, 2, 4]},
            "stage_epochs: [1.0, 2.0, 4.0] add up to 7, but num_epochs is 6",
        ),
        (
            {"num_steps": 9, "num_epochs": None},
            "stage_epochs: [1.0, 2.0, 3.0] needs num_epochs; give it instead of num_steps 9",
        ),
        (
            {"model.dropout": [0.1, 0.2]},
            "model.dropout: [0.1, 0.2] has 2 entries, one per stage, but stage_epochs "
            "[1.0, 2.0, 3.0] has 3",
        ),
        (
            {"stage_epochs": [], "model.drop_path": [0.1, 0.2]},
            "model.drop_path: [0.1, 0.2] has 2 entries, one per stage, but data.stage_image_sizes "
            "[16, 16, 32] has 3",
        ),
        (
            {"augment": [{"op": "CenterCrop"}, {"op": "Mix", "mixup_alpha": [0, 1]}]},
            "augment.1.mixup_alpha: [0.0, 1.0] has 2 entries, one per stage, but stage_epochs "
            "[1.0, 2.0, 3.0] has 3",
        ),
        (
            {"model.dropout": [0.1, 0.2, 1]},
            "model.dropout.2: must be at least 0 and below 1, got 1.0",
        ),
        ({"model.dropout": []}, "model.dropout: expected a number, got [] (list); or expected at "),
    ],
)
def test_stages_that_do_not_fit_are_refused(changes: dict[str, Any], complaint: str) -> None:
    message = error_of(valid(**STAGES | changes))
    assert message.startswith(complaint)


def test_operational_fields_may_change_in_a_run_and_the_others_may_not() -> None:
    operational = {
        "data.data_dir",
        "data.prepare",
        "data.folder_index",
        "data.num_workers",
        "data.num_threads",
        "data.prefetch",
        "data.cache_gib",
        "data.verify",
        "checkpoint.every_steps",
        "checkpoint.keep_latest",
        "checkpoint.keep_best",
        "eval_every_steps",
        "log_every_steps",
        "log_images",
        "wandb_project",
        "on_non_finite",
        "max_skipped_steps",
        "stuck_after_seconds",
        "parallel.state",
        "parallel.fsdp_devices",
    }
    assert operational_fields() == operational
    old = Config(num_steps=10)
    new = decode(
        valid(
            **{
                "data.data_dir": "elsewhere",
                "data.num_workers": 3,
                "checkpoint.every_steps": 7,
                "data.batch_size": 128,
                "optimizer.options": {"momentum": 0.9},
                "seed": 1,
            }
        )
    )
    assert changed_fields(old, old) == {}
    assert changed_fields(old, new) == {
        "data.batch_size": (64, 128),
        "optimizer.options.momentum": (None, 0.9),
        "seed": (0, 1),
    }


def test_configs_are_frozen_and_take_keywords_only() -> None:
    config = Config(num_steps=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError, match="positional"):
        ModelConfig("tiny")  # pyright: ignore[reportCallIssue]


def write(folder: Path, text: str, name: str = "run.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def load_error(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    return str(caught.value)


IMPORTS = "from jaxcls.config import *\n"


def test_a_config_file_is_run_and_its_config_checked(tmp_path: Path) -> None:
    text = "def get_config():\n    return Config(num_steps=3, optimizer=OptimizerConfig({}))\n"
    path = write(tmp_path, IMPORTS + text.format("learning_rate=1"))
    config = load_config(str(path))
    assert config == Config(num_steps=3, optimizer=OptimizerConfig(learning_rate=1.0))
    assert type(config.optimizer.learning_rate) is float
    path = write(tmp_path, IMPORTS + text.format("learning_rate='fast'"))
    assert load_error(path).startswith("optimizer.learning_rate: expected a number, got 'fast'")
    path = write(tmp_path, IMPORTS + "import math\nget_config = lambda: Config(seed=math)\n")
    assert load_error(path).startswith("seed: expected a whole number, got <module 'math'")


CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.rglob("*.py")), ids=lambda path: str(path.relative_to(CONFIGS))
)
def test_the_configs_of_the_repository_load(path: Path) -> None:
    assert isinstance(load_config(path), Config)


def test_a_missing_config_file_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    near = write(tmp_path, "", "digits.py")
    message = load_error(tmp_path / "digit.py")
    assert message.startswith(f"config file {str(tmp_path / 'digit.py')!r} does not exist")
    assert message.endswith(f"did you mean {str(near)!r}?")
    assert load_error(tmp_path / "nowhere" / "a.py").endswith("does not exist")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("\n\n1 / 0\n", (":3: ", "ZeroDivisionError: division by zero")),
        ("def get_config():\n    raise KeyError('lr')\n", (":2: ", "KeyError: 'lr'")),
        ("def get_config(:\n", (":1: ", "SyntaxError: ")),
        ("import nothing_here\n", (":1: ", "No module named 'nothing_here'")),
        ("x = 1\n", ("define get_config()",)),
        ("get_config = 3\n", ("not callable",)),
        ("def get_config():\n    return {'seed': 1}\n", ("must return a Config", "(dict)")),
        ("def get_config():\n    pass\n", ("must return a Config", "None (NoneType)")),
        ("def get_config(size):\n    pass\n", ("missing 1 required positional argument",)),
        (
            IMPORTS + "def get_config():\n    return Config(num_step=3)\n",
            (":3: ", "Config has no field 'num_step'; did you mean 'num_steps'?"),
        ),
        (
            "from jaxcls.config.augment import RandAugment\nRandAugment(magnitud=1)\n",
            (":2: ", "RandAugment has no field 'magnitud'; did you mean 'magnitude'?"),
        ),
        (
            IMPORTS + "get_config = lambda: Config(\n    data=DataConfig(batchsize=3))\n",
            (":3: ", "DataConfig has no field 'batchsize'; did you mean 'batch_size'?"),
        ),
        (
            "class Path:\n    def __init__(self): pass\nPath(near=1)\n",
            (":3: ", "TypeError: Path.__init__() got an unexpected keyword argument 'near'"),
        ),
    ],
    ids=[
        "raises at import",
        "raises in get_config",
        "syntax error",
        "unknown import",
        "no get_config",
        "get_config is no function",
        "returns a dict",
        "returns nothing",
        "takes arguments",
        "misspelled field",
        "misspelled field of an augmentation",
        "misspelled field of a group",
        "misspelled keyword of something else",
    ],
)
def test_a_config_file_that_fails_is_explained_with_its_line(
    tmp_path: Path, text: str, parts: tuple[str, ...]
) -> None:
    path = write(tmp_path, text)
    message = load_error(path)
    assert message.startswith(str(path))
    for part in parts:
        assert part in message


def test_every_field_has_a_text_for_the_help() -> None:
    for section in [Config, *(kind for kind in typing.get_type_hints(Config).values())]:
        if not dataclasses.is_dataclass(section):
            continue
        source = inspect.getsource(typing.cast(type, section))
        for field in dataclasses.fields(section):
            if dataclasses.is_dataclass(typing.get_type_hints(section)[field.name]):
                continue  # a group is explained by its class
            after = source.split(f"\n    {field.name}: ", 1)[1].split("\n", 1)[1].lstrip()
            assert after.startswith('"""'), field.name


@pytest.mark.parametrize(
    "config",
    [
        {"data": {"data_dir": "https://me:pw@host/sets"}},
        {"data": {"source": "folder:https://host/x?X-Amz-Signature=pw"}},
        {"model": {"weights": "https://pw@host/w.safetensors"}},
        {"optimizer": {"options": {"x": "gs://bucket/?token=pw"}}},
    ],
)
def test_a_config_has_no_secrets_because_runs_record_it(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="has a password or token in it, which a run would") as e:
        decode({"num_steps": 1, **config})
    assert "***" in str(e.value)
    assert "pw" not in str(e.value)
