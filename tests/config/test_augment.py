import dataclasses
import inspect
import json
from collections.abc import Sequence
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcls.config import (
    Config,
    DataConfig,
    OptimizerConfig,
    changed_fields,
    check_batch,
    decode,
    encode,
)
from jaxcls.config.augment import (
    AUGMIX_OPS,
    GUIDE_OPS,
    TRIVIAL_OPS,
    AnyAugmentation,
    Augmentation,
    AugMix,
    CenterCrop,
    Cutout,
    Mix,
    OpName,
    RandAugment,
    RandomCrop,
    RandomCropAndResize,
    RandomErasing,
    RandomFlip,
    TrivialAugment,
    check_augment,
    mix_of,
)
from jaxcls.config.decoding import ConfigError

OPS: tuple[OpName, ...] = get_args(OpName)

# --- Any valid list ------------------------------------------------------------------------------

SHARES = st.floats(0, 1)
STRENGTHS = SHARES | st.lists(SHARES, min_size=1, max_size=4).map(tuple)
ALPHAS = st.floats(0, 1e3) | st.lists(st.floats(0, 1e3), min_size=1, max_size=4).map(tuple)
FILLS = st.sampled_from(["constant", "noise"])
OP_LISTS = st.lists(st.sampled_from(OPS), min_size=1, max_size=6, unique=True).map(tuple)


def intervals(low: float, high: float) -> st.SearchStrategy[tuple[float, ...]]:
    return st.tuples(st.floats(low, high), st.floats(low, high)).map(lambda x: tuple(sorted(x)))


FLIPS = st.builds(RandomFlip, horizontal=SHARES, vertical=SHARES)
RESIZES = (
    st.just(CenterCrop())
    | st.just(RandomCrop())
    | st.builds(
        RandomCropAndResize,
        area=intervals(0.001, 1),
        aspect=intervals(0.01, 100),
        aspect_of=st.sampled_from(["image", "pixels"]),
    )
)
CHANGES = st.one_of(
    st.builds(
        RandAugment,
        num_ops=st.integers(1, 16),
        magnitude=STRENGTHS,
        magnitude_std=STRENGTHS,
        rate=SHARES,
        ops=OP_LISTS,
    ),
    st.builds(TrivialAugment, ops=OP_LISTS),
    st.builds(
        AugMix,
        magnitude=STRENGTHS,
        magnitude_std=STRENGTHS,
        width=st.integers(1, 8),
        depth=st.integers(1, 8),
        alpha=st.floats(0.01, 100),
        ops=OP_LISTS,
    ),
    st.builds(Cutout, size=STRENGTHS, fill=FILLS, value=SHARES),
    st.builds(
        RandomErasing,
        probability=STRENGTHS,
        area=intervals(0, 1),
        aspect=intervals(0.01, 100),
        fill=FILLS,
        value=SHARES,
    ),
)
MIXES = st.builds(
    Mix,
    cutmix=st.floats(0, 0.5),
    cutmix_alpha=ALPHAS,
    mixup=st.floats(0, 0.5),
    mixup_alpha=ALPHAS,
    group_size=st.sampled_from([2, 4, 8, 16, 32, 64]),
)
LISTS = st.tuples(
    st.lists(FLIPS, max_size=2),
    RESIZES.map(lambda entry: [entry]),
    st.lists(FLIPS, max_size=1),
    st.lists(CHANGES, max_size=3),
    st.lists(MIXES, max_size=1),
).map(lambda parts: tuple(entry for part in parts for entry in part))


@settings(max_examples=60, deadline=None)
@given(LISTS)
def test_a_valid_list_survives_json_unchanged(augment: tuple[Any, ...]) -> None:
    config = Config(num_steps=1, augment=augment)
    written = json.dumps(encode(config), allow_nan=False)
    assert decode(json.loads(written)) == config


def test_an_entry_is_written_with_its_kind() -> None:
    values = encode(Config(num_steps=1, augment=(CenterCrop(), Cutout(size=(0.1, 0.2)))))
    assert values["augment"] == [
        {"op": "CenterCrop"},
        {"op": "Cutout", "size": [0.1, 0.2], "fill": "constant", "value": 0.0},
    ]


def test_absent_fields_take_their_defaults_and_whole_numbers_become_floats() -> None:
    config = decode(
        {"num_steps": 1, "augment": [{"op": "CenterCrop"}, {"op": "Cutout", "size": 1}]}
    )
    assert config.augment == (CenterCrop(), Cutout(size=1.0))
    assert type(config.augment[1].size) is float  # pyright: ignore[reportAttributeAccessIssue]


# --- What is refused -----------------------------------------------------------------------------


def error_of(*augment: Any, **changes: Any) -> str:
    """The complaint about a list of entries, objects or dicts."""
    values = encode(Config(num_steps=1, **changes))
    values["augment"] = [
        entry if not dataclasses.is_dataclass(entry) else encoded(entry) for entry in augment
    ]
    with pytest.raises(ConfigError) as caught:
        decode(values)
    return str(caught.value)


def encoded(entry: Any) -> Any:
    return encode(Config(num_steps=1, augment=(entry,)))["augment"][0]


@pytest.mark.parametrize(
    ("entry", "start", "parts"),
    [
        (
            {"op": "RandAugmnt"},
            "augment.1: unknown op 'RandAugmnt'",
            ["mean 'RandAugment'?", "Mix"],
        ),
        ({"op": 3}, "augment.1: unknown op 3", ["CenterCrop"]),
        ({"op": {"CenterCrop": 1}}, "augment.1: unknown op {'CenterCrop': 1}", ["CenterCrop"]),
        ({"magnitude": 0.3}, "augment.1: expected a group of fields with 'op'", []),
        ("Mix", "augment.1: expected a group of fields with 'op', got 'Mix' (str)", []),
        ({"op": "Mix", "cutmx": 1}, "unknown field augment.1.cutmx", ["mean 'augment.1.cutmix'?"]),
        (
            {"op": "RandAugment", "ops": ["Color", "Brightnes"]},
            "augment.1.ops.1: 'Brightnes' is not one of AutoContrast, ",
            ["did you mean 'Brightness'?"],
        ),
        ({"op": "RandAugment", "ops": []}, "augment.1.ops: expected at least one entry", []),
        ({"op": "RandAugment", "ops": "Color"}, "augment.1.ops: expected a list", []),
        ({"op": "RandAugment", "num_ops": 0}, "augment.1.num_ops: must be between 1 and 16", []),
        ({"op": "RandAugment", "num_ops": 2.5}, "augment.1.num_ops: expected a whole", []),
        ({"op": "RandAugment", "magnitude": 1.5}, "augment.1.magnitude: ", ["between 0 and 1"]),
        ({"op": "RandAugment", "magnitude": "big"}, "augment.1.magnitude: ", ["a number", "'big'"]),
        (
            {"op": "RandAugment", "magnitude": [0.1, -0.2]},
            "augment.1.magnitude",
            ["between 0 and 1", "-0.2"],
        ),
        ({"op": "RandAugment", "magnitude": []}, "augment.1.magnitude: ", ["at least one entry"]),
        (
            {"op": "RandomErasing", "area": [0.5, 0.1]},
            "augment.1.area: the low end 0.5 is above",
            [],
        ),
        ({"op": "RandomErasing", "area": [0.5]}, "augment.1.area: expected a low and a high", []),
        ({"op": "RandomErasing", "area": [0.5, 2]}, "augment.1.area: must be between 0 and 1", []),
        ({"op": "RandomErasing", "aspect": [0, 1]}, "augment.1.aspect: must be between 0.01", []),
        ({"op": "RandomErasing", "fill": "noize"}, "augment.1.fill: 'noize' is not one of", []),
        ({"op": "Cutout", "value": None}, "augment.1.value: expected a number, got None", []),
        ({"op": "Mix", "cutmix": 1.2}, "augment.1.cutmix: must be between 0 and 1", []),
        ({"op": "Mix", "mixup_alpha": -1}, "augment.1.mixup_alpha: ", ["at least 0"]),
        ({"op": "Mix", "group_size": 3}, "augment.1.group_size: must be even, got 3", []),
        ({"op": "Mix", "group_size": 0}, "augment.1.group_size: must be at least 2", []),
        (
            {"op": "Mix", "cutmix": 0.7, "mixup": 0.5},
            "augment.1.cutmix, augment.1.mixup: ",
            ["at most 1", "0.7 + 0.5"],
        ),
    ],
    ids=str,
)
def test_a_wrong_value_is_named_with_its_entry(entry: Any, start: str, parts: list[str]) -> None:
    message = error_of(RandomCrop(), entry)
    assert message.startswith(start)
    for part in parts:
        assert part in message


@pytest.mark.parametrize("value", [None, 3, "RandomFlip", {"op": "RandomCrop"}])
def test_what_is_no_list_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^augment: expected a list, got"):
        decode({"num_steps": 1, "augment": value})


def test_a_reversed_range_of_the_resize_is_refused() -> None:
    message = error_of({"op": "RandomCropAndResize", "area": [1.0, 0.8]})
    assert message == "augment.0.area: the low end 1.0 is above the high end 0.8"


@pytest.mark.parametrize(
    ("augment", "start", "parts"),
    [
        ((Mix(),), "augment: needs exactly one of CenterCrop", ["got Mix"]),
        ((RandomFlip(),), "augment: needs exactly one of", ["got RandomFlip"]),
        (
            (RandomCrop(), RandomFlip(), CenterCrop()),
            "augment: needs exactly one of",
            ["got RandomCrop, RandomFlip, CenterCrop"],
        ),
        ((Mix(), RandomCrop()), "augment.0: Mix comes before RandomCrop (augment.1)", ["after"]),
        (
            (RandomFlip(), Cutout(), RandomCrop()),
            "augment.1: Cutout comes before RandomCrop (augment.2)",
            ["put it after"],
        ),
        (
            (RandomCrop(), RandAugment(), RandomFlip()),
            "augment.2: RandomFlip comes after RandAugment",
            ["right after RandomCrop (augment.0)"],
        ),
        (
            (RandomCrop(), Mix(), Cutout()),
            "augment.1: Mix comes before Cutout (augment.2)",
            ["put it last"],
        ),
        ((RandomCrop(), Mix(), Mix()), "augment.1: Mix comes before Mix (augment.2)", []),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_an_order_that_makes_no_sense_is_refused(
    augment: Sequence[Augmentation], start: str, parts: list[str]
) -> None:
    message = error_of(*augment)
    assert message.startswith(start)
    for part in parts:
        assert part in message
    with pytest.raises(ConfigError):
        check_augment(augment)


@pytest.mark.parametrize("channels", [1, 4, 6])
@pytest.mark.parametrize("entry", [RandAugment(), TrivialAugment(), AugMix(ops=("Color",))])
def test_operations_on_rgb_are_refused_for_other_channels(
    channels: int, entry: Augmentation
) -> None:
    message = f"^augment.1.ops: Color needs red, green and blue, but data.channels is {channels}; "
    with pytest.raises(ConfigError, match=message):
        check_augment((CenterCrop(), entry), channels=channels)
    check_augment((CenterCrop(), AugMix(), Cutout(), Mix()), channels=channels)
    check_augment((CenterCrop(), entry), channels=3)


@pytest.mark.parametrize(
    "augment",
    [
        (CenterCrop(),),
        (RandomFlip(), RandomCrop(), RandomFlip()),
        (RandomCropAndResize(), RandomFlip(), RandAugment(), AugMix(), Cutout(), Mix()),
        (RandomCrop(), Mix(cutmix=1.0, mixup=0.0)),
    ],
)
def test_an_order_that_makes_sense_is_taken(augment: tuple[AnyAugmentation, ...]) -> None:
    config = Config(augment=augment, num_steps=1)
    assert decode(encode(config)).augment == augment


# --- Groups --------------------------------------------------------------------------------------


def grouped(group_size: int, *, batch_size: int = 64, micro_batches: int = 1) -> Config:
    return Config(
        num_steps=1,
        data=DataConfig(batch_size=batch_size),
        optimizer=OptimizerConfig(micro_batches=micro_batches),
        augment=(RandomFlip(), RandomCrop(), Mix(group_size=group_size)),
    )


def test_groups_divide_a_micro_batch() -> None:
    with pytest.raises(ConfigError) as caught:
        decode(encode(grouped(32, micro_batches=4)))
    assert str(caught.value).startswith(
        "augment.2.group_size: groups of 32 do not divide the 16 examples of a micro-batch"
    )
    decode(encode(grouped(16, micro_batches=4)))


def test_groups_stay_on_one_device() -> None:
    with pytest.raises(ConfigError) as caught:
        check_batch(grouped(8, micro_batches=2), 8)
    assert str(caught.value) == (
        "augment.2.group_size: groups of 8 do not divide the 4 examples that a device has in a "
        "micro-batch; use a divisor of 4"
    )
    check_batch(grouped(4, micro_batches=2), 8)
    check_batch(grouped(8, micro_batches=2), 4)


# --- Saved runs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        ({}, (RandomFlip(), RandomCrop())),
        ({"crop": True, "flip": False}, (RandomCrop(),)),
        ({"crop": False, "flip": True}, (RandomFlip(), CenterCrop())),
        ({"crop": False, "flip": False}, (CenterCrop(),)),
    ],
)
def test_a_config_of_version_1_has_its_switches_as_a_list(
    switches: dict[str, bool], expected: tuple[Augmentation, ...]
) -> None:
    values = {"schema_version": 1, "num_steps": 3, "data": {"batch_size": 32}, "augment": switches}
    config = decode(values)
    assert config.augment == expected
    assert config.data.batch_size == 32
    assert encode(config)["schema_version"] == 2
    assert decode(encode(config)) == config
    assert values["schema_version"] == 1  # what was given is left as it was
    del values["augment"]
    assert decode(values).augment == (RandomFlip(), RandomCrop())


@pytest.mark.parametrize(
    ("switches", "complaint"),
    [
        ({"flop": True}, "unknown field augment.flop; did you mean 'augment.flip'?"),
        ({"flip": 2}, "augment.flip: expected True or False, got 2 (int)"),
        ([1], "augment: expected a group of fields, got [1] (list)"),
        (None, "augment: expected a group of fields, got None (NoneType)"),
    ],
)
def test_a_broken_config_of_version_1_is_refused(switches: Any, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        decode({"schema_version": 1, "num_steps": 3, "augment": switches})
    assert str(caught.value) == complaint


def test_a_changed_entry_is_named_when_a_run_is_resumed() -> None:
    old = Config(num_steps=1, augment=(RandomFlip(), RandomCrop()))
    new = Config(num_steps=1, augment=(RandomFlip(horizontal=0.3), RandomCrop(), Mix()))
    changes = changed_fields(old, new)
    assert changes["augment.0.horizontal"] == (0.5, 0.3)
    assert changes["augment.2.op"] == (None, "Mix")
    assert "augment.1.op" not in changes


# --- The schema ----------------------------------------------------------------------------------


def test_the_mixer_of_a_list() -> None:
    assert mix_of((CenterCrop(), mix := Mix())) is mix
    assert mix_of((CenterCrop(),)) is None


def test_lists_of_operations_hold_known_ones_once() -> None:
    for ops in (GUIDE_OPS, TRIVIAL_OPS, AUGMIX_OPS):
        assert len(set(ops)) == len(ops)
        assert set(ops) <= set(OPS)
    assert len(GUIDE_OPS) == 10


@pytest.mark.parametrize("kind", get_args(AnyAugmentation))
def test_every_field_has_a_text_for_the_help(kind: type) -> None:
    source = inspect.getsource(kind)
    assert kind.__doc__
    for field in dataclasses.fields(kind):
        after = source.split(f"\n    {field.name}: ", 1)[1].split("\n", 1)[1].lstrip()
        assert after.startswith('"""'), field.name


def test_an_operation_is_listed_once() -> None:
    with pytest.raises(ConfigError, match=r"augment\.1\.ops: Color is listed twice"):
        check_augment((RandomCrop(), RandAugment(ops=("Color", "Invert", "Color"))))


def test_forgotten_parentheses_are_named() -> None:
    config = dataclasses.replace(Config(num_steps=1), augment=(RandomCrop,))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"augment\.0: RandomCrop is a class; write"):
        decode(encode(config))
