"""Records which ranks share disks."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Nodes:
    """Maps ranks to nodes.

    of_rank: name of each rank's node, by rank; "" for all ranks when every rank sees the same disks.
    """

    of_rank: tuple[str, ...]

    def ranks(self, node: str) -> list[int]:
        return [rank for rank, name in enumerate(self.of_rank) if name == node]

    def leader(self, node: str) -> int:
        """Return the rank that makes, commits and removes directories on the node's disks."""
        return self.of_rank.index(node)

    def leads(self, rank: int) -> bool:
        return self.leader(self.of_rank[rank]) == rank
