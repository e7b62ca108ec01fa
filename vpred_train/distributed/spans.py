"""Describes a parameter's place in the flat space. Needs no MindSpore."""

from dataclasses import dataclass

NO_DECAY_NAMES = ("embedding",)


@dataclass(frozen=True)
class Span:
    """Holds one parameter's place in the flat space: elements [start, stop)."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def decays(self) -> bool:
        """Return whether weight decay applies: to matrices and kernels, not to norms, biases and embeddings."""
        return len(self.shape) > 1 and not any(word in self.name for word in NO_DECAY_NAMES)
