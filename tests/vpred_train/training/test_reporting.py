"""Metrics never end a training: ports that are taken, and files that are none."""

import argparse
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from launcher.contract.identity import Identity
from monitoring import RankLabels, WorkerMetrics
from support.jobs import free_ports
from vpred_train.training.rank import MetricsPlace
from vpred_train.training.worker import metrics_place

RANK = RankLabels(run="cats", rank="1", local_rank="1", hostname="h", device_id="1")
IDENTITY = Identity(rank=1, world_size=2, local_rank=1, local_size=2, hostname="h", launcher="openmpi")


@pytest.mark.parametrize(("taken", "served"), [(0, 0), (2, 2), (3, None)])
def test_a_rank_takes_its_next_port_and_trains_without_metrics_when_there_is_none(
    taken: int, served: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    from vpred_train.training.reporting import serve

    first = free_ports(6)
    ports = range(first, first + 6, 2)
    with ExitStack() as held:
        for port in ports[:taken]:
            held.enter_context(socket.create_server(("127.0.0.1", port)))
        exporter = serve(WorkerMetrics(RANK), MetricsPlace("127.0.0.1", ports))
    if served is None:
        assert exporter is None
        assert "trains without metrics, after 3 ports; metrics: cannot listen on 127.0.0.1" in caplog.text
    else:
        assert exporter is not None and exporter.port == ports[served]
        exporter.close()
    assert len(caplog.records) == (1 if taken else 0)


def test_ranks_of_a_host_never_try_the_same_port(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    arguments = argparse.Namespace(
        metrics_address="::", metrics_port_base=9400, metrics_port_span=3, metrics_linger_s=0.0,
        metrics_certificate=None, metrics_key=None, metrics_client_ca=None, metrics_users=None,
    )  # fmt: skip
    place = metrics_place(arguments, IDENTITY)
    assert place is not None and list(place.ports) == [9401, 9403, 9405]
    arguments.metrics_users = tmp_path / "none"
    assert metrics_place(arguments, IDENTITY) is None
    arguments.metrics_users, arguments.metrics_certificate = None, tmp_path / "none.pem"
    arguments.metrics_key = tmp_path / "none.key"
    assert metrics_place(arguments, IDENTITY) is None
    assert [line.message.partition(":")[0] for line in caplog.records] == ["this rank trains without metrics"] * 2
