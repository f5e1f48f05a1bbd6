"""Tensors and states of modules of PyTorch (kind "torch"), as safetensors: a header and bare numbers.

A tensor comes back on the CPU and contiguous, whatever device and layout it had; whether it asks for gradients is
kept. A state is what `module.state_dict()` gives, an `OrderedDict` of tensors: its order and the versions of its
modules are kept. Tensors of a state that share memory come back each with its own.
"""

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from collections.abc import Mapping
from importlib import import_module
from typing import Any, BinaryIO, Final

from evpipe.wire.extensions import Refused, named
from evpipe.wire.serializers.borders import meta_value, reading, refusing
from evpipe.wire.serializers.registry import ArtifactUnreadable, Serializer, Stored

_ALONE: Final = "tensor"
_NOTES: Final = "evpipe"
_ACCEPTED: Final = "accepted are dense tensors and state dicts: module.state_dict()"


class TorchSerializer:
    """Writes and reads tensors and states."""

    name = "torch"
    version = 1

    def write(self, value: Any, file: BinaryIO) -> Mapping[str, Any]:
        torch = import_module("torch")
        if isinstance(value, torch.nn.Module):
            raise Refused(f"{named(type(value))}, a module whose code does not travel", "pass value.state_dict()")
        with refusing(named(type(value)), _ACCEPTED):
            save = import_module("safetensors.torch").save
            if type(value) is OrderedDict:
                tensors = {name: _plain(tensor, torch) for name, tensor in value.items()}
                asks = [name for name, tensor in value.items() if tensor.requires_grad]
                versions = getattr(value, "_metadata", None)
                notes = {"order": list(value), "versions": versions, "requires_grad": asks}
                # One note, for safetensors writes several in any order.
                file.write(save(tensors, metadata={_NOTES: json.dumps(notes)}))
                return {"form": "state"}
            form = {torch.Tensor: "tensor", torch.nn.Parameter: "parameter"}.get(type(value))
            if form is None:
                raise Refused(named(type(value)), _ACCEPTED)
            file.write(save({_ALONE: _plain(value, torch)}))
            return {"form": form} | ({"requires_grad": True} if value.requires_grad else {})

    def read(self, stored: Stored) -> Any:
        with reading(self.name, "torch", "safetensors"):
            torch = import_module("torch")
            form = meta_value(stored.meta, "form", str)
            data = stored.bytes()
            # The header was looked at by safetensors: every tensor is where the bytes are.
            tensors = import_module("safetensors.torch").load(data)
            if form == "state":
                return _state(tensors, _notes(data))
            if form not in {"tensor", "parameter"} or list(tensors) != [_ALONE]:
                raise ArtifactUnreadable(f"there is no {form!r:.100} in these tensors")
            asks = stored.meta.get("requires_grad") is True
            if form == "parameter":
                return torch.nn.Parameter(tensors[_ALONE], requires_grad=asks)
            return tensors[_ALONE].requires_grad_(asks)


SERIALIZERS: Final[dict[str, Serializer]] = {"torch": TorchSerializer()}


def serializer_of(value: Any) -> Serializer | None:
    """Give what writes a tensor, or an ordered dict of tensors; a module is refused when it is written."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "nn"):
        return None
    if type(value) is OrderedDict:
        tensors = all(type(name) is str and isinstance(part, torch.Tensor) for name, part in value.items())
        return SERIALIZERS["torch"] if value and tensors else None
    return SERIALIZERS["torch"] if isinstance(value, (torch.Tensor, torch.nn.Module)) else None


def _plain(tensor: Any, torch: Any) -> Any:
    """Give the numbers of a tensor in memory of their own, which safetensors asks for."""
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise Refused(f"a tensor of the layout {tensor.layout}", "pass value.to_dense() or value.dequantize()")
    if tensor.grad_fn is not None:
        raise Refused("a tensor that is part of a computation of gradients", "pass value.detach()")
    if tensor.is_meta:
        raise Refused("a tensor without numbers (device 'meta')", "make it on a device first")
    return tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().clone()


def _notes(data: bytes) -> dict[str, Any]:
    length = int.from_bytes(data[:8], "little")
    notes = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_NOTES])
    if type(notes) is not dict:
        raise ArtifactUnreadable("a state without the order of its tensors")
    return notes


def _state(tensors: dict[str, Any], notes: dict[str, Any]) -> Any:
    order = notes["order"]
    if type(order) is not list or sorted(order) != sorted(tensors):
        raise ArtifactUnreadable("a state with an order of other tensors")
    state = OrderedDict((name, tensors[name]) for name in order)
    for name in notes["requires_grad"]:
        state[name].requires_grad_(True)
    if notes["versions"] is not None:
        # As `Module.state_dict` leaves it, and `load_state_dict` looks for it.
        vars(state)["_metadata"] = OrderedDict(notes["versions"])
    return state
