import itertools

import numpy as np
import pytest

from jaxcls.config import DataConfig
from jaxcls.data.order import balanced_order, steps_per_epoch, training_order
from jaxcls.system.errors import DataError


def config(**fields):
    return DataConfig(**{"batch_size": 16, **fields})


def epochs(size, data, number, seed=0):
    """Record numbers of the first epochs, in order."""
    order = training_order(size, data, seed=seed)
    steps = steps_per_epoch(size, data)
    sequence = [
        order.records(step, range(data.batch_size)) for step in range(int(np.ceil(number * steps)))
    ]
    per_epoch = round(steps * data.batch_size)
    return np.concatenate(sequence)[: number * per_epoch].reshape(number, per_epoch)


@pytest.mark.parametrize("last_batch", ["drop", "straddle"])
@pytest.mark.parametrize("size", [96, 101])
def test_epochs_are_permutations_and_differ(size, last_batch):
    data = config(last_batch=last_batch)
    sequence = epochs(size, data, 4)
    for epoch in sequence:
        assert len(set(epoch.tolist())) == len(epoch) == (96 if last_batch == "drop" else size)
        assert epoch.min() >= 0
        assert epoch.max() < size
    for one, other in itertools.combinations(sequence, 2):
        assert (one == other).mean() < 0.1
    assert (sequence[0] == np.arange(len(sequence[0]))).mean() < 0.1


def test_every_example_is_used_in_time_though_epochs_drop_some():
    assert set(epochs(101, config(), 6).ravel().tolist()) == set(range(101))


def test_seeds_differ_in_every_epoch():
    first, second = (epochs(96, config(), 4, seed=seed) for seed in (0, 1))
    for one, other in itertools.product(first, second):
        assert (one == other).mean() < 0.1


def test_order_is_the_same_forever():
    """A release that changes these numbers changes every resumed run."""
    order = training_order(1442, config(), seed=0)
    assert order.records(0, range(4)).tolist() == [1009, 815, 1316, 246]
    assert order.records(10**6, range(4)).tolist() == [695, 80, 842, 428]


def test_steps_per_epoch():
    assert steps_per_epoch(101, config()) == 6
    assert steps_per_epoch(101, config(last_batch="straddle")) == 101 / 16
    assert steps_per_epoch(5, config(last_batch="straddle")) == 5 / 16
    with pytest.raises(
        DataError, match=r"data.batch_size: 16 takes 16 examples, more than the 15 of"
    ):
        steps_per_epoch(15, config())


@pytest.mark.parametrize("last_batch", ["drop", "straddle"])
@pytest.mark.parametrize("repeats", [2, 4, 16])
def test_repeats_stand_apart_and_an_epoch_still_visits_everything_once(repeats, last_batch):
    size, data = 101, config(repeats=repeats, last_batch=last_batch)
    order, unique = training_order(size, data, seed=0), 16 // repeats
    steps = steps_per_epoch(size, data)
    assert steps == (size // unique if last_batch == "drop" else size / unique)
    firsts = []
    for step in range(int(steps)):
        batch = order.records(step, range(16)).reshape(repeats, unique)
        assert (batch == batch[0]).all()  # row i holds example i % unique
        assert len(set(batch[0].tolist())) == unique
        assert order.records(step, np.array([5, 3])).tolist() == batch.ravel()[[5, 3]].tolist()
        firsts += batch[0].tolist()
    assert len(set(firsts)) == len(firsts) == int(steps) * unique
    plain = training_order(size, config(batch_size=unique, last_batch=last_batch), seed=0)
    assert firsts[:unique] == plain.records(0, range(unique)).tolist()


def test_repeats_need_fewer_examples_for_a_batch():
    assert steps_per_epoch(4, config(repeats=4)) == 1
    with pytest.raises(DataError, match=r"16 takes 4 examples, more than the 3 of an epoch"):
        steps_per_epoch(3, config(repeats=4))


# Balanced sampling

LABELS = [0] * 70 + [1] * 20 + [3] * 5 + [0]  # class 2 has no example


def balanced(labels, data, steps, seed=0):
    order = balanced_order(labels, data, seed=seed)
    return np.stack([order.records(step, range(data.batch_size)) for step in range(steps)])


def test_each_batch_has_the_classes_in_equal_parts():
    records = balanced(LABELS, config(batch_size=12), 20)
    for batch in np.asarray(LABELS)[records]:
        assert np.bincount(batch).tolist() == [4, 4, 0, 4]


def test_the_examples_of_a_class_come_equally_often():
    records = balanced(LABELS, config(batch_size=12), 71)  # 284 of each class, 4 times the 71 of 0
    counts = np.bincount(records.ravel(), minlength=len(LABELS))
    for label, expected in ((0, {4}), (1, {14, 15}), (3, {56, 57})):
        assert set(counts[np.asarray(LABELS) == label]) == expected


def test_classes_and_examples_come_in_changing_orders():
    records = balanced(LABELS, config(batch_size=12), 20)
    classes = np.asarray(LABELS)[records].reshape(-1, 3)
    assert len({tuple(round_) for round_ in classes}) == 6
    of_3 = records.ravel()[np.asarray(LABELS)[records.ravel()] == 3].reshape(-1, 5)
    assert {tuple(sorted(epoch)) for epoch in of_3} == {(90, 91, 92, 93, 94)}
    assert len({tuple(epoch) for epoch in of_3}) > 8


def test_balanced_order_follows_from_seed_step_and_row():
    data = config(batch_size=12)
    order = balanced_order(LABELS, data, seed=0)
    whole = order.records(7, range(12))
    assert order.records(7, np.asarray([5, 2])).tolist() == whole[[5, 2]].tolist()
    assert (balanced(LABELS, data, 4, seed=1) != balanced(LABELS, data, 4)).mean() > 0.8


def test_balanced_order_is_the_same_forever():
    order = balanced_order(LABELS, config(batch_size=12), seed=0)
    assert order.records(0, range(4)).tolist() == [53, 90, 82, 39]
    assert order.records(10**6, range(4)).tolist() == [75, 28, 93, 30]


def test_images_with_several_classes_or_none_take_part():
    labels = [(0,), (0, 1), (), (1, 2), (), (0,)]
    records = balanced(labels, config(batch_size=8), 6)
    counts = np.bincount(records.ravel(), minlength=6)  # of 48 rows, 12 for each of four groups
    assert counts.tolist() == [4, 4 + 6, 6, 6 + 12, 6, 4]


def test_repeats_are_rows_of_one_example():
    records = balanced(LABELS, config(batch_size=12, repeats=2), 5)
    np.testing.assert_array_equal(records[:, :6], records[:, 6:])
