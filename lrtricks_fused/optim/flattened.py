"""Parameters that FSDP1 has flattened: a step with what needs the whole ones is refused."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from .arguments import ARGUMENTS

# What needs to know the whole parameters, unless it has its default.
_OF_WHOLES = {
    name: ARGUMENTS[name].default
    for name in ("keep_prob", "centralize", "max_norm", "rounding", "state_rounding", "track_metrics", "track_changes")
} | {"add_slopes_to": False}


def are_flattened(params: Iterable[Any]) -> bool:
    """Whether some are shards that FSDP1 has flattened."""
    return any(getattr(param, "_fsdp_flattened", False) for param in params)


def of_wholes(optimizer: Any) -> dict[str, Any]:
    """What the attributes of an optimizer say of what needs the whole parameters."""
    own = {name: getattr(optimizer, name, default) for name, default in _OF_WHOLES.items()}
    return {**own, "add_slopes_to": getattr(optimizer, "_slopes", None) is not None}


def check_flattened(given: Mapping[str, Any]) -> None:
    """Raises ValueError for what takes a parameter's elements or shape, which FSDP1 has flattened."""
    for name, default in _OF_WHOLES.items():
        if isinstance(given[name], Tensor) or given[name] != default:
            raise ValueError(
                f"Invalid {name}={given[name]!r} for parameters flattened by FullyShardedDataParallel: they do "
                "not say which elements they hold, as those of torch.distributed.fsdp.fully_shard (FSDP2) do"
            )
