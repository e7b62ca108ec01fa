"""Ranks as real processes, forked and joined by pipes: cheap enough to kill by the hundred."""

import json
import os
import socket
import struct
import traceback
from collections.abc import Callable, Sequence
from typing import Any

DEADLINE_S = 60.0


class PipeRank:
    """A Communicator over one socket between rank 0 and each other; a peer that is gone or silent is an OSError."""

    def __init__(self, rank: int, world_size: int, sockets: list[socket.socket]) -> None:
        self.rank, self.world_size, self._sockets = rank, world_size, sockets
        for each in sockets:
            each.settimeout(DEADLINE_S)

    def allgather_object(self, value: Any) -> list[Any]:
        if self.rank:
            _send(self._sockets[0], value)
            values: list[Any] = _receive(self._sockets[0])
            return values
        values = [json.loads(json.dumps(value)), *map(_receive, self._sockets)]
        for each in self._sockets:
            _send(each, values)
        return values

    def broadcast_object(self, value: Any, root: int = 0) -> Any:
        return self.allgather_object(value)[root]

    def barrier(self) -> None:
        self.allgather_object(None)


def start_ranks(
    world_size: int, work: Callable[[Any], None], pairs: Sequence[tuple[socket.socket, socket.socket]] | None = None
) -> list[int]:
    """Fork the ranks; work(comm) runs in each, which then ends with 0, or with 1 after an exception. Their pids.

    `pairs`: the lines between rank 0 and each other, kept open here, for one who would cut them.
    """
    kept, pairs = pairs is not None, pairs or [socket.socketpair() for _ in range(world_size - 1)]
    pids = []
    for rank in range(world_size):
        pid = os.fork()
        if pid == 0:
            own = [pair[0] for pair in pairs] if rank == 0 else [pairs[rank - 1][1]]
            for pair in pairs:
                for each in pair:
                    if each not in own:
                        each.close()
            code = 1
            try:
                work(PipeRank(rank, world_size, own))
                code = 0
            except OSError:
                pass  # a peer is gone
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        pids.append(pid)
    for pair in () if kept else pairs:
        for each in pair:
            each.close()
    return pids


def end_of(pid: int) -> int:
    """Exit code of a rank, minus the signal if one ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _send(end: socket.socket, value: Any) -> None:
    content = json.dumps(value).encode()
    end.sendall(struct.pack("<I", len(content)) + content)


def _receive(end: socket.socket) -> Any:
    (length,) = struct.unpack("<I", _exactly(end, 4))
    return json.loads(_exactly(end, length))


def _exactly(end: socket.socket, length: int) -> bytes:
    content = b""
    while len(content) < length:
        part = end.recv(length - len(content))
        if not part:
            raise ConnectionResetError("the peer is gone")
        content += part
    return content
