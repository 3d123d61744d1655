"""Memory of a GPU that streams read: nobody else may be given it before they have done with it."""

from collections.abc import Iterable

import torch
from torch import Tensor


def raw_stream(device: int) -> int:
    """The address of a GPU's current stream, which as an object takes longer to ask for; the default stream's is 0."""
    try:
        return torch._C._cuda_getCurrentRawStream(device)
    except AttributeError:  # private
        return torch.cuda.current_stream(device).cuda_stream


def is_capturing(tensor: Tensor) -> bool:
    """Whether the tensor lies on a GPU, the current one, and its current stream records a graph."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


class Streams:
    """The streams that read some tensors of one device, which are held over several steps."""

    def __init__(self) -> None:
        self._known: dict[int, torch.cuda.Stream] = {}  # by their addresses

    def add(self, tensor: Tensor) -> Tensor:
        """One tensor more, which the same streams will have read."""
        for stream in self._known.values():
            tensor.record_stream(stream)
        return tensor

    def use(self, device: torch.device, tensors: Iterable[Tensor | None]) -> None:
        """The device's current stream reads these, if it is a GPU; always the same ones, and those added since."""
        if device.type != "cuda":
            return
        index = torch.cuda.current_device() if device.index is None else device.index
        address = raw_stream(index)
        if address not in self._known:
            stream = self._known[address] = torch.cuda.current_stream(index)
            for tensor in tensors:
                if tensor is not None:
                    tensor.record_stream(stream)
