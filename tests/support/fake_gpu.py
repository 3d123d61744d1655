"""A GPU that computes nothing: the meta device, and an error for every copy that a step must not make.

Its tensors know shapes and dtypes. What is looked at is which copies between host and device are asked for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

GPU = torch.device("meta")


class _Copies(TorchDispatchMode):
    """Refuses copies that wait for the GPU, and those that the CPU would read before they are there."""

    def __init__(self, may_wait: bool) -> None:
        super().__init__()
        self.may_wait = may_wait

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense" and args[0].device == GPU:
            raise AssertionError("a number on the GPU is read: the host waits for it")
        if name == "_to_copy":
            target = torch.device(kwargs.get("device") or args[0].device)
            self._look(args[0].device, target, kwargs.get("non_blocking"))
            if target != args[0].device:
                return torch.empty(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype, device=target)
        if name == "copy_":
            self._look(args[1].device, args[0].device, args[2] if len(args) > 2 else kwargs.get("non_blocking"))
        return func(*args, **kwargs)

    def _look(self, source: torch.device, target: torch.device, non_blocking: bool | None) -> None:
        if source.type == "cpu" and target == GPU:
            raise AssertionError("a copy from pageable memory waits for the GPU, and cannot be captured")
        if source == GPU and target.type == "cpu" and non_blocking:
            raise AssertionError("the CPU reads what may not have arrived")
        if source == GPU and target.type == "cpu" and not self.may_wait:
            raise AssertionError("the host waits for the GPU")


@contextmanager
def fake_gpu(may_wait: bool = False) -> Iterator[torch.device]:
    """A context in which tensors can be made on the device that it yields.

    Args:
        may_wait: whether copies to the CPU are allowed that the host waits for.
    """
    make, make_like = torch.tensor, torch.Tensor.new_tensor

    def tensor(data: Any, **options: Any) -> torch.Tensor:
        if torch.device(options.get("device") or "cpu") == GPU:
            raise AssertionError("numbers of Python are copied to the GPU, which waits")
        return make(data, **options)

    def new_tensor(like: torch.Tensor, data: Any, **options: Any) -> torch.Tensor:
        if torch.device(options.get("device") or like.device) == GPU:
            raise AssertionError("numbers of Python are copied to the GPU, which waits")
        return make_like(like, data, **options)

    # Of these the meta device makes no copies.
    patches = mock.patch.object(torch, "tensor", tensor), mock.patch.object(torch.Tensor, "new_tensor", new_tensor)
    with _Copies(may_wait), patches[0], patches[1]:
        yield GPU
