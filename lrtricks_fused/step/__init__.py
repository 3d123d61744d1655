"""One fused step: what it is told, what its tensors must be, and the backends that take it."""
