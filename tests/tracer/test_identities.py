"""IDs by one rule, from the step to the result: one type, as they were, or an error before work."""

from __future__ import annotations

import enum
import pickle
import re

import numpy as np
import pytest
import torch

from replay import Influence, Replay, Task
from replay.session.choices import known_ids
from replay.task import parse_test_ids
from tests.helpers.results import made
from tests.helpers.wrapping import X, Y, backward, build, sgd
from tracer import TracingSGD, open_log
from tracer.errors import InputError, TaskError, TracingError, TracingWarning, warn
from tracer.identities import fault_of, plain_id


class Name(str, enum.Enum):
    """Text that is an enumeration's."""

    DOG = "dog"


class Number(enum.IntEnum):
    """A number that is an enumeration's."""

    ONE = 1


FIT = {
    "largest": ([2**63 - 1, -(2**63)], [2**63 - 1, -(2**63)]),
    "uint64": ([np.uint64(7), np.int8(-1)], [7, -1]),
    "empty text": (["", " a ", "ü\n猫", "0"], ["", " a ", "ü\n猫", "0"]),
    "enumerations": ([Name.DOG, np.str_("cat")], ["dog", "cat"]),
    "numbers of enumerations": ([Number.ONE, torch.tensor(3)], [1, 3]),
}
WRONG = {
    "mixed": ([0, "0"], "found integers and text, 0 and '0'"),
    "2**63": ([1, 2**63], "found 9223372036854775808, more than 64 bits"),
    "uint64": ([np.uint64(2**64 - 1)], "found 18446744073709551615, more than 64 bits"),
    "negative": ([-(2**63) - 1], "found -9223372036854775809, more than 64 bits"),
    "long": (["a" * 10**6 + "\0"], "found 'a{20,60}\\.\\.\\.a{20,60}.x00', with a NUL"),
    "NUL": (["b", "a\0b"], r"found 'a\\x00b', with a NUL"),
    "NUL in UTF-8": (["ü\0"], r"found 'ü\\x00', with a NUL"),
    "half a character": (["\ud83d"], r"found '\\ud83d', with half a character"),
    "bytes": ([b"dog"], "found b'dog' of type bytes"),
    "bool": ([True, 2], "found True of type bool"),
    "numpy's bool": ([np.True_], "found True of type bool"),
}
fitting = pytest.mark.parametrize(("ids", "plain"), FIT.values(), ids=FIT)
wrong = pytest.mark.parametrize(("ids", "message"), WRONG.values(), ids=WRONG)


@fitting
def test_ids_come_back_from_log_and_result(tmp_path, ids, plain):
    model = build()
    with TracingSGD(sgd(model), model, tmp_path / "run.h5") as optimizer:
        backward(model, [0, 1])
        optimizer.step(batch_ids=ids)
    with open_log(tmp_path / "run.h5") as log:
        assert log.batch_ids(0) == plain
        assert {type(identity) for identity in log.batch_ids(0)} == {type(plain[0])}
    assert known_ids(ids, dict.fromkeys(plain), "test") == plain
    scores = {"tracin": np.ones((1, len(ids)))}
    Influence(ids[:1], ids, scores, {}, {}, {}, {}).save(tmp_path / "study.h5")
    again = Influence.load(tmp_path / "study.h5")
    assert (again.test_ids, again.train_ids) == (plain[:1], plain)


@wrong
def test_ids_that_cannot_be_kept_are_errors_at_the_step(tmp_path, ids, message):
    model = build()
    with TracingSGD(sgd(model), model, tmp_path / "run.h5") as optimizer:
        backward(model, [0, 1])
        before = model[0].weight.detach().clone()
        with pytest.raises(TracingError, match=f"batch IDs must be .*{message}"):
            optimizer.step(batch_ids=ids)
        assert torch.equal(before, model[0].weight)
        optimizer.step(batch_ids=[0, 1])


@wrong
def test_labels_are_checked_before_the_work_and_before_writing(tmp_path, ids, message):
    with pytest.raises(InputError, match="(test IDs (are|of)|number 1 of the list is)"):
        known_ids(ids, dict.fromkeys(ids), "test")
    if not isinstance(ids[0], (bool, bytes, np.bool_)):
        with pytest.raises(InputError, match=f"test IDs of one result .*{message}"):
            known_ids(ids, dict.fromkeys(ids), "test")
    found = made()
    found.train_ids[: len(ids)] = ids
    if len({type(plain_id(i)) for i in found.train_ids}) == 1 or message != WRONG["mixed"][1]:
        with pytest.raises(InputError, match="its train IDs must be all integers of 64 bits"):
            found.save(tmp_path / "study.h5")
        assert not list(tmp_path.iterdir())


def test_a_training_set_of_both_types_is_refused_before_the_first_step(tmp_path):
    model = build()
    data = {0: (X[0], Y[0]), "0": (X[1], Y[1])}
    loss = lambda model, b: torch.nn.functional.cross_entropy(model(b[0]), b[1], reduction="none")  # noqa: E731
    with TracingSGD(sgd(model), model, tmp_path / "run.h5") as optimizer:
        loss(model, (X[:1], Y[:1])).mean().backward()
        optimizer.step(batch_ids=[0])
    run = Replay(tmp_path / "run.h5", task=Task(build, loss, data, data))
    for ask in (lambda: run.influence([0]), run.self_influence):
        with pytest.raises(InputError, match="training IDs of one result .*0 and '0'.*train_ids="):
            ask()
    found = run.influence([0], train_ids=[0], progress=False)
    assert found.train_ids == [0]
    with pytest.raises(InputError, match="IDs 0 and '0', which no list of IDs tells apart"):
        run.parse_test_ids(["0"])


def test_keys_that_are_no_ids():
    for key in (True, b"dog", 1.5, None, (1, 2)):
        with pytest.raises(TaskError, match="IDs are integers or strings, found the key"):
            parse_test_ids(["1"], {key: 0})
    assert parse_test_ids(["dog"], {Name.DOG: 0}) == ["dog"]


def test_a_list_of_ids_is_text():
    data = dict.fromkeys((1, 12, 2), 0)
    assert parse_test_ids("12\n1\n", data) == parse_test_ids(["12", "1"], data) == [12, 1]
    for lines in (b"12", [12], 12):
        with pytest.raises(InputError, match="expected lines of text with an ID each, found .*12"):
            parse_test_ids(lines, data)


def test_what_stands_in_a_list_is_shown_in_a_few_words():
    for line in ("x" * 10**7, "\0" * 10**6, "# \n" + "é" * 10**6):
        with pytest.raises(InputError) as error:
            parse_test_ids([line], {"y" * 10**6: 0, "z": 1})
        assert len(str(error.value)) < 400


@pytest.mark.parametrize("kind", [InputError, TaskError, TracingError])
def test_no_message_is_longer_than_a_screen(kind):
    text = "expected a name, found " + "x" * 10**7 + "; choose another."
    error = pickle.loads(pickle.dumps(kind(text)))
    assert len(str(error)) < 2100
    assert re.fullmatch(
        r"expected .*x{9}.* \(\d+ characters left out\) .*; choose another.", str(error)
    )
    assert str(kind("short")) == "short"
    with pytest.warns(TracingWarning) as found:
        warn(text)
    assert len(str(found[0].message)) < 2100


def test_no_ids_have_no_fault():
    assert not fault_of([])
