"""A step that nobody looks at, without torch's preparations for those who do, which cost as much as a small step."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import profiler
from torch.optim import optimizer as torch_optimizer


def _is_observed(optimizer: Any) -> bool:
    """Whether a hook waits for the step, a profiler for its name, or a tracer, who knows torch's own wrapper."""
    return bool(
        torch.compiler.is_compiling()
        or profiler._is_profiler_enabled
        or optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or torch_optimizer._global_optimizer_pre_hooks
        or torch_optimizer._global_optimizer_post_hooks
    )


def quick(plain: Callable[..., Any], wrapped: Callable[..., Any], repeats: bool) -> Callable[..., Any]:
    """``wrapped``, torch.optim's wrapper of ``plain``, where the step is observed; else ``plain`` itself.

    With ``repeats`` not even that, where the step can repeat the one before (repeats.py).
    """

    @functools.wraps(plain)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _is_observed(self):
            return wrapped(self, *args, **kwargs)
        if repeats and not args and not kwargs and self._repeats.step(self):
            return None
        return plain(self, *args, **kwargs)

    vars(step)["hooked"] = True  # by which torch.optim knows its own wrapper
    return step
