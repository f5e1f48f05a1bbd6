"""Tensors and states of PyTorch."""

from __future__ import annotations

import pickle
import struct
from collections import OrderedDict
from typing import Any

import pytest

from evpipe.wire.extensions import Refused
from evpipe.wire.serializers.registry import ArtifactUnreadable
from evpipe.wire.serializers.torch_states import serializer_of
from tests.serializers.helpers import check_corrupted, fingerprint, fingerprints_elsewhere, read, round_trip, written

torch: Any = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")


def _module() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))


def _tensors() -> list[Any]:
    grid = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    dtypes = (
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int8,
        torch.uint8,
        torch.int64,
        torch.bool,
        torch.complex64,
    )
    return [
        grid,
        grid.T,
        grid[:, ::2],
        torch.tensor(3.5),
        torch.zeros(0, 3),
        torch.tensor([float("nan"), -0.0]),
        torch.ones(2, requires_grad=True),
        torch.nn.Parameter(torch.ones(2)),
        torch.nn.Parameter(torch.ones(2), requires_grad=False),
        *(grid.to(dtype) for dtype in dtypes),
    ]


@pytest.mark.parametrize("number", range(len(_tensors())))
def test_tensors_come_back_as_they_were(number: int) -> None:
    """Class, dtype, shape, numbers, and whether it asks for gradients."""
    tensor = _tensors()[number]
    again = round_trip(tensor)
    assert type(again) is type(tensor)
    assert (again.dtype, again.shape, again.requires_grad) == (tensor.dtype, tensor.shape, tensor.requires_grad)
    assert (
        torch.equal(again.nan_to_num(7), tensor.nan_to_num(7))
        if tensor.dtype.is_floating_point
        else torch.equal(again, tensor)
    )


def test_states_are_loaded_as_before() -> None:
    """A state keeps its order and the versions of its modules."""
    module = _module()
    state = module.state_dict()
    again = round_trip(state)
    assert type(again) is OrderedDict
    assert list(again) == list(state)
    assert vars(again)["_metadata"] == vars(state)["_metadata"]
    other = _module()
    other.load_state_dict(again)
    assert torch.equal(other.eval()(torch.ones(2, 3)), module.eval()(torch.ones(2, 3)))


def test_tensors_that_share_memory_come_back_apart() -> None:
    """As tied weights do."""
    weights = torch.ones(2)
    again = round_trip(OrderedDict(a=weights, b=weights))
    again["a"][0] = 5
    assert again["b"].tolist() == [1, 1]


def _values() -> list[Any]:
    return [*_tensors(), _module().state_dict()]


def test_equal_tensors_have_equal_bytes() -> None:
    """In other processes, too."""
    assert fingerprint(torch.arange(4)[::2]) == fingerprint(torch.tensor([0, 2]))
    assert fingerprints_elsewhere(__name__, "_values") == [fingerprint(value) for value in _values()]


def test_what_would_not_come_back_is_refused() -> None:
    """Modules, sparse tensors, parts of a computation."""
    with pytest.raises(Refused, match="Sequential") as caught:
        written(_module())
    assert "state_dict()" in caught.value.hint
    one = torch.ones(2, requires_grad=True)
    for tensor, hint in [
        (torch.eye(2).to_sparse(), "to_dense"),
        (one * 2, "detach"),
        (torch.ones(2, device="meta"), "device"),
    ]:
        with pytest.raises(Refused) as caught:
            written(tensor)
        assert hint in caught.value.hint
    assert serializer_of(OrderedDict(a=1)) is None
    assert serializer_of(torch.float32) is None


class _Bad:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("it was run",))


def test_bad_bytes_are_unreadable() -> None:
    """Pickles are not opened, sizes are looked at, and whatever is broken is said in one way."""
    for data in (
        b"",
        pickle.dumps(_Bad()),
        struct.pack("<Q", 2**60),
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 65) + b'{"tensor":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4]}}' + b"1234",
    ):
        for form in ("tensor", "state"):
            with pytest.raises(ArtifactUnreadable):
                read("torch", data, {"form": form})
    _, data, _ = written(torch.arange(12))
    for bad in ({}, {"form": "module"}, {"form": "state"}):
        with pytest.raises(ArtifactUnreadable):
            read("torch", data, bad)
    assert check_corrupted(torch.arange(12), tries=150) > 50
