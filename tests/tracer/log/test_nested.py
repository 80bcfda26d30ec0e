"""Nested values come back as they were; whatever the bytes, nothing else is read."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from tests.helpers.wrappers import Halves
from tracer.codec import nested
from tracer.codec.nested import NestedError, decode, encode
from tracer.codec.wrapped import Wrapped, rewrapped, unwrapped
from tracer.errors import TracingError

NESTED = {"a": [torch.arange(3), (1.5, None, True)], 7: "text", "e": torch.zeros(0, 2)}


def test_nested_round_trip():
    found = decode(encode(NESTED, "it"))
    assert list(found) == ["a", 7, "e"]
    assert torch.equal(found["a"][0], torch.arange(3))
    assert found["a"][1] == (1.5, None, True)
    assert found["e"].shape == (0, 2)
    for dtype in (torch.bfloat16, torch.float64, torch.bool, torch.complex64, torch.int8):
        value = torch.tensor([[0, 1], [1, 0]]).to(dtype).T
        again = decode(encode(value, "it"))
        assert again.dtype == dtype
        assert torch.equal(again, value)
    assert torch.equal(decode(encode(torch.tensor(2.5), "it")), torch.tensor(2.5))
    assert decode(encode([np.float64(0.1), np.int64(3)], "it")) == [0.1, 3]
    array = decode(encode(np.arange(6.0).reshape(2, 3).T, "it"))
    assert isinstance(array, np.ndarray)
    assert (array == np.arange(6.0).reshape(2, 3).T).all()
    assert np.isnan(decode(encode(float("nan"), "it")))
    number = decode(encode(np.array(3.0), "it"))
    assert isinstance(number, np.ndarray)
    assert number.shape == ()
    assert number == 3


def test_dimensions_keep_their_order_in_memory():
    """So that products of what is read have the bits that products of what was stored had."""
    whole = torch.arange(120.0).reshape(2, 3, 4, 5)
    for value in (whole, whole.permute(3, 0, 2, 1), whole.to(memory_format=torch.channels_last)):
        again = decode(encode([value], "it"))[0]
        assert torch.equal(again, value)
        assert again.stride() == value.stride()
    for value in (
        whole[:, ::2].mT,
        whole[:1].expand(2, 3, 4, 5),
    ):  # with gaps: as if they were none
        assert torch.equal(decode(encode(value, "it")), value)
    for order in (b"[0, 0]", b"[2, 1]", b"[0]", b"7"):
        with pytest.raises(NestedError):
            decode(described(b'{"tensor": ["float32", [2, 2], 0, %s]}' % order, bytes(16)))


def test_tensors_that_wrap_others():
    """They come back without their class, and become tensors of it where it is imported."""
    value = {"state": [Packed(torch.arange(3), 0.5), 1]}
    found = decode(encode(value, "it"))
    assert found["state"][0].kind == f"{__name__}:Packed"
    assert found["state"][0].context == (0.5, torch.float32)
    assert torch.equal(found["state"][0].tensors["codes"], torch.arange(3))
    again = rewrapped(found)["state"][0]
    assert type(again) is Packed
    assert again.scale == 0.5
    same = unwrapped({"state": (again,)})["state"][0]
    assert torch.equal(same.tensors["codes"], torch.arange(3))
    hidden = Wrapped("no.such:Packed", {}, ())
    with pytest.raises(TracingError, match=r"holds a Packed, whose class .*\n  1\. Import no.such"):
        rewrapped(hidden)
    with pytest.raises(NestedError, match=r"it\['p'\] is a Packed of torch.float32; a log stores"):
        encode({"p": Packed(torch.arange(3), object())}, "it")
    for kind in ("os:getcwd", "builtins:dict", "tests:nothing"):
        with pytest.raises(TracingError, match="whose class is not imported here"):
            rewrapped(Wrapped(kind, {}, ()))


class Packed(Halves):
    """Numbers with a scale, as quantised states are."""

    def __init__(self, codes, scale):
        super().__init__(codes)
        self.codes, self.scale = codes, scale

    @staticmethod
    def __new__(cls, codes, scale):
        return Halves.__new__(cls, codes)

    def __tensor_flatten__(self):
        return ["codes"], [self.scale, self.dtype]

    @classmethod
    def __tensor_unflatten__(cls, tensors, context, size, stride):
        return cls(tensors["codes"], context[0])


def test_nested_views():
    """Values that are not what lies in memory are stored as they are."""
    value = torch.tensor([1 + 2j, 3j], dtype=torch.complex64)
    assert torch.equal(decode(encode(value.conj(), "it")), value.conj().resolve_conj())
    assert torch.equal(decode(encode(value.conj().imag, "it")), torch.tensor([-2.0, -3.0]))
    for dtype in (">f4", ">i8"):
        array = np.arange(3).astype(dtype)
        array.flags.writeable = False
        again = decode(encode(array, "it"))
        assert again.dtype == array.dtype.newbyteorder("=")
        assert (again == array).all()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"x": [1, object()]}, r"it\['x'\]\[1\] is a object; a log stores dense tensors, arrays"),
        ({(1, 2): 3}, "it is a dict; a log stores"),
        (torch.zeros(2, 2).to_sparse(), "it is a sparse tensor of torch.float32; a log stores"),
        (torch.zeros(2, device="meta"), "it is a meta tensor of torch.float32; a log stores"),
        (np.array(["a"]), "it is a ndarray of <U1"),
        (np.ones(2, np.longdouble), "it is a ndarray of float128"),
        (np.longdouble(1), "it is a longdouble"),
    ],
)
def test_what_cannot_be_stored(value, message):
    with pytest.raises(NestedError, match=message):
        encode(value, "it")


def described(header, tensors=b""):
    data = len(header).to_bytes(8, "little") + header
    return data + bytes(-len(data) % 8) + tensors


def test_what_is_named_twice_would_be_in_memory_twice():
    node = b'{"tensor": ["float32", [2, 2], 0]}'
    assert decode(described(b'{"list": [%s]}' % node, bytes(16)))[0].shape == (2, 2)
    with pytest.raises(NestedError, match="two tensors share bytes"):
        decode(described(b'{"list": [%s]}' % b", ".join([node] * 400), bytes(16)))


def test_many_values(monkeypatch):
    """Of each comes an object, many times its bytes in the header."""
    monkeypatch.setattr(nested, "_LARGEST", 9)
    decode(encode([1] * 6, "it"))
    with pytest.raises(NestedError, match="it has 11 values; a log stores at most 9"):
        encode([1] * 10, "it")
    for header in (b"[" + b"0," * 10 + b"0]", b"[" * 10 + b"]" * 10, b'[{"":0}' * 9):
        with pytest.raises(NestedError, match="the header has .* values, at most 9 can be"):
            decode(described(header))


def test_mutated_nested_values():
    rng, data = random.Random(0), encode(NESTED, "it")
    for _ in range(2000):
        broken = bytearray(data)
        for _ in range(rng.choice([1, 2, 8])):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        try:
            decode(bytes(broken))
        except NestedError:
            continue
    deep = b'{"list":[' * 3000 + b"]}" * 3000
    with pytest.raises(NestedError, match="not a stored value: .*recursion"):
        decode(len(deep).to_bytes(8, "little") + deep)
