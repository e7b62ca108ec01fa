"""Reads ranks' logs as they grow, line by line, and puts the rank before each line."""

from collections.abc import Collection, Mapping

from launcher.contract.config import ConfigError
from launcher.contract.run_dir import AttemptDir

_READ_BYTES = 1 << 20
_ALL = "all"


class LogStream:
    """Reads the logs of `ranks` of one attempt from their beginning. Each call reads only the new part."""

    def __init__(self, attempt: AttemptDir, ranks: Collection[int], *, prefix: bool = True) -> None:
        self._attempt = attempt
        self._ranks = sorted(ranks)
        width = len(str(max(ranks, default=0)))
        self._prefix = {rank: f"[{rank:>{width}}] " if prefix else "" for rank in ranks}
        self._read = dict.fromkeys(ranks, 0)
        self._rest = dict.fromkeys(ranks, b"")

    def lines(self, log_bytes: Mapping[int, int]) -> list[str]:
        """Return the lines that were completed since the last call.

        log_bytes: the present sizes of the logs that exist, bytes
        """
        found = []
        for rank in self._ranks:
            while self._read[rank] < log_bytes.get(rank, 0):
                with self._attempt.log(rank).open("rb") as file:
                    file.seek(self._read[rank])
                    chunk = file.read(_READ_BYTES)
                if not chunk:
                    break
                self._read[rank] += len(chunk)
                *whole, self._rest[rank] = (self._rest[rank] + chunk).split(b"\n")
                found += [self._line(rank, line) for line in whole]
        return found

    def rest(self) -> list[str]:
        """Return the last lines that have no line end."""
        unfinished, self._rest = self._rest, dict.fromkeys(self._rest, b"")
        return [self._line(rank, line) for rank, line in unfinished.items() if line]

    def _line(self, rank: int, line: bytes) -> str:
        return self._prefix[rank] + line.decode(errors="replace").rstrip("\r")


def parse_ranks(text: str, world_size: int, option: str) -> list[int]:
    """Parse "0,4-7" or "all" as ranks. Raises ConfigError: on other text or an unknown rank; it names `option`."""
    if text == _ALL:
        return list(range(world_size))
    ranks: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not (first.isdecimal() and (last or first).isdecimal()) or int(first) > int(last or first):
            raise ConfigError(f"{option}: found {text!r} (give all, a rank, or ranks such as 0,4-7)")
        ranks.update(range(int(first), int(last or first) + 1))
    if max(ranks) >= world_size:
        raise ConfigError(f"{option}: found rank {max(ranks)} (the run has ranks 0 to {world_size - 1})")
    return sorted(ranks)
