"""A rank table of 20,000 devices: from the cluster's hosts to a checked file, read back and validated.

    PYTHONPATH=. .venv/bin/python tests/benchmarks/launcher/bench_rank_table.py

The first two ratios are seconds and peak memory over what is allowed: 5 s and 500 MB; the last is the time in which the
cluster file of these hosts is read and checked, over that in which PyYAML's own safe loader reads it. Seconds are those
of the processor (one thread), so that other work on the machine does not count.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import yaml

from launcher.cluster.config import ClusterConfig, load_cluster
from launcher.cluster.hosts import Device, Host
from launcher.cluster.start import Metrics
from launcher.contract.config import dump_yaml
from launcher.ranktable.document import check_table, fingerprint, read_table, write_table
from launcher.ranktable.generate import make_table

ALLOWED_S = 5.0
ALLOWED_BYTES = 500e6


def big_cluster(hosts: int, devices: int, per_pod: int) -> ClusterConfig:
    """A3 hosts in super-pods of `per_pod`."""
    return ClusterConfig(
        name="big",
        accelerator="ascend",
        metrics=Metrics(address="::"),
        hosts=tuple(
            Host(
                address=f"n{h:05d}",
                super_pod=f"{h // per_pod:04d}",
                devices=tuple(
                    Device(id=d, ip=f"10.{h // 250}.{h % 250}.{d + 1}", super_device_id=h * 65536 + d)
                    for d in range(devices)
                ),
            )
            for h in range(hosts)
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=20_000)
    hosts = parser.parse_args().devices // 16
    started_s = time.process_time()
    cluster = big_cluster(hosts, 16, per_pod=24)
    built_s = time.process_time()
    table = make_table(cluster)
    made_s = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rank_table.json"
        write_table(path, table, fingerprint(table))
        size_bytes = path.stat().st_size
        written_s = time.process_time()
        again, found = read_table(path)
        found += check_table(again)
    ended_s = time.process_time()
    if found or again != table:
        raise SystemExit(f"the table does not come back sound: {found[:3]}")
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{hosts * 16} devices, {size_bytes / 1e6:.1f} MB; hosts {built_s - started_s:.2f} s, table made and checked")
    print(f"{made_s - built_s:.2f} s, written {written_s - made_s:.2f} s, read and checked {ended_s - written_s:.2f} s")
    print(f"peak memory {peak_bytes / 1e6:.0f} MB")
    print(f"rank_table_seconds ratio {(ended_s - started_s) / ALLOWED_S:.3f}")
    print(f"rank_table_memory ratio {peak_bytes / ALLOWED_BYTES:.3f}")
    compare_reading(cluster)


def compare_reading(cluster: ClusterConfig) -> None:
    """`cluster` as a file, read by us and by PyYAML."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cluster.yaml"
        path.write_text(dump_yaml(cluster))
        started_s = time.process_time()
        again = load_cluster(path)
        read_s = time.process_time()
        yaml.safe_load(path.read_text())
        plain_s = time.process_time() - read_s
    if again != cluster:
        raise SystemExit("the cluster file does not come back")
    print(f"the cluster file: read and checked {read_s - started_s:.2f} s, yaml.safe_load alone {plain_s:.2f} s")
    print(f"cluster_file ratio {(read_s - started_s) / plain_s:.3f}")


if __name__ == "__main__":
    main()
