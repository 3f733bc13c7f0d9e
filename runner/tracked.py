"""How the state of a tracked object is read and put back: modules, optimizers, containers, tensors."""

from __future__ import annotations

from typing import Any

import torch

from runner.checkpoints import decode, encode


def check_trackable(name: str, item: Any) -> None:
    """Raises TypeError for an object whose state cannot be saved or restored in place."""
    has_state = hasattr(item, "state_dict") and hasattr(item, "load_state_dict")
    if not has_state and not isinstance(item, (dict, list, set, torch.Tensor, torch.Generator)):
        raise TypeError(
            f"ctx.track({name}=...): a {type(item).__name__} has no state_dict and load_state_dict, and is no dict, "
            "list, set, tensor or generator; give it the two methods, or keep the value in a tracked dict"
        )


def read_state(name: str, item: Any) -> Any:
    """The state as tensors and plain containers (references, not copies)."""
    if hasattr(item, "state_dict"):
        return encode(item.state_dict(), f"state_dict of {name}")
    if isinstance(item, torch.Generator):
        return item.get_state()
    return encode(item, name)


def write_state(item: Any, state: Any) -> None:
    """Puts a state back in place, so that every reference to the object sees it."""
    if hasattr(item, "load_state_dict"):
        item.load_state_dict(decode(state))
    elif isinstance(item, torch.Generator):
        item.set_state(state)
    elif isinstance(item, torch.Tensor):
        with torch.no_grad():
            item.copy_(state)
    elif isinstance(item, list):
        item[:] = decode(state)
    else:
        item.clear()
        item.update(decode(state))
