"""A parameter's place in the flat space. No MindSpore."""

from dataclasses import dataclass

NO_DECAY_NAMES = ("embedding",)


@dataclass(frozen=True)
class Span:
    """One parameter's place in the flat space: elements [start, stop)."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def decays(self) -> bool:
        """Weight decay is for matrices and kernels: not for norms, biases and embeddings."""
        return len(self.shape) > 1 and not any(word in self.name for word in NO_DECAY_NAMES)
