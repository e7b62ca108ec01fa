"""A pytest plugin that breaks one safeguard of the package: --mutant NAME. See test_mutants.py."""

from contextlib import nullcontext
from typing import Any

import pytest

from checkpoints_mgr import votes
from checkpoints_mgr.disk import reading, storage, verified
from checkpoints_mgr.restore import restoring
from checkpoints_mgr.save import saving, staging, sweeping, writing


class Equal(str):
    """A digest that fits all."""

    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False


def no_tile_check() -> None:
    writing.fault_of = lambda manifest: ""  # type: ignore[attr-defined]


def no_digest_check() -> None:
    class Blind(reading.ChunkHasher):
        def digests(self) -> list[str]:
            return [Equal(digest) for digest in super().digests()]

    reading.ChunkHasher = Blind  # type: ignore[misc]


def no_size_check() -> None:
    reading.check_step = restoring.check_step = lambda directory, manifest: None


def no_vote() -> None:
    def own_alone(comm: Any, what: str, action: Any) -> list[Any]:
        comm.allgather_object(None)
        return [action()] * comm.world_size

    saving.together = restoring.together = own_alone  # type: ignore[attr-defined]


def no_vote_on_what_was_written() -> None:
    def of_those_that_could(what: str, found: Any) -> list[Any]:
        is_rows = all(isinstance(vote["result"][0], list) for vote in found if vote["result"])
        return [vote["result"] or [[] if is_rows else 0, 0.0] for vote in found]

    saving.results_of = of_those_that_could  # type: ignore[attr-defined]


def no_blame() -> None:
    votes.REMEDIES.clear()


def no_lease() -> None:
    storage.locked = lambda path, exclusive: nullcontext(True)  # type: ignore[assignment]


def no_second_look() -> None:
    restoring._second_look = lambda directory, files: "corrupt"


def no_owner() -> None:
    sweeping.is_alive = lambda tag: False  # type: ignore[attr-defined]


def no_copy() -> None:
    staging.Arena._copies = lambda arena, arrays: arrays  # type: ignore[assignment, method-assign]


def trust_in_names() -> None:
    facts = {"files": "", "save_id": "", "nodes": [""], "metrics": {}}
    verified._verified = lambda directory, remembered: facts


def trust_in_the_memory() -> None:
    verified._fingerprint = lambda directory: ""


def no_other_nodes() -> None:
    real = sweeping.given_up

    def alone(retention: Any, sound_of_node: Any) -> list[int]:
        own = {node: [each._replace(nodes=[node]) for each in steps] for node, steps in sound_of_node.items()}
        return real(retention, own)

    saving.given_up = alone  # type: ignore[attr-defined]


MUTANTS = {
    each.__name__: each
    for each in (
        no_tile_check, no_digest_check, no_size_check, no_vote, no_vote_on_what_was_written, no_blame, no_lease,
        no_second_look, no_owner, no_copy, trust_in_names, trust_in_the_memory, no_other_nodes,
    )
}  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mutant", choices=list(MUTANTS))


def pytest_configure(config: pytest.Config) -> None:
    MUTANTS[config.getoption("--mutant")]()
