"""Accepts a rank table that a controller, an operator or a person wrote, instead of a generated one.

Its ranks, devices and addresses must be those of the cluster file, which the rest of a launch follows.
"""

from collections.abc import Iterator, Sequence

from launcher.cluster.config import ClusterConfig
from launcher.contract.config import ConfigError
from launcher.contract.config_errors import shown
from launcher.ranktable.document import check_origin, check_table, find_file, fingerprint, read_table, render
from launcher.ranktable.editing import Placement, Table, convert, placements
from launcher.ranktable.generate import make_table, rank_table, target_of
from launcher.ranktable.table_findings import Finding


def chosen_table(cluster: ClusterConfig) -> str:
    """Return the text of the table that a run of `cluster` uses: `launcher.rank_table`, or else a generated one.

    Raises ConfigError: when the given table has faults, is stale, or places ranks differently from the cluster file.
    """
    if cluster.launcher.rank_table is None:
        return rank_table(cluster)
    path = find_file(cluster.launcher.rank_table)
    table, found = read_table(path)
    if not found:
        found = check_table(table, target_of(cluster))
    if not any(each.severity == "error" for each in found):
        found = [*found, *check_origin(path, fingerprint(make_table(cluster))), *against_cluster(table, cluster)]
    if errors := [each for each in found if each.severity == "error"]:
        raise ConfigError("\n".join(f"launcher.rank_table: {path}: {each}" for each in errors[:10]))
    return render(convert(table, "1.0") if "group_list" in table else table)


def against_cluster(table: Table, cluster: ClusterConfig) -> list[Finding]:
    """Find the ranks that `table` puts on another host or device than a launch of `cluster` does."""
    placed = placements(table)
    if len(placed) != cluster.world_size:
        problem = f"the cluster file has {cluster.world_size} devices"
        remedy = "bring in line: `vpred-launch ranktable diff`, `subset`, or the cluster file's hosts"
        return [Finding("", f"{len(placed)} ranks", "cluster-size", problem, remedy, "")]
    return list(_misplaced(placed, cluster, named=table.get("version") != "2.0"))


def _misplaced(placed: Sequence[Placement], cluster: ClusterConfig, *, named: bool) -> Iterator[Finding]:
    """Yield a finding for each rank in another place.

    named: the table names servers; a label that is no address of the cluster may stand for any one host
    """
    addresses = {host.address for host in cluster.hosts}
    labels: dict[str, str] = {}
    remedy = "sort it with `vpred-launch ranktable merge`, or correct the cluster file"
    expected = [(host.address, device) for host in cluster.ordered_hosts for device in host.devices]
    for place, (address, device) in zip(placed, expected, strict=True):
        path = f"rank {place.rank}"
        label = labels.setdefault(address, place.server)
        if named and (label != place.server or (label in addresses and label != address)):
            problem = f"in the cluster file this rank is on {address}"
            yield Finding(path, f"server {shown(place.server)}", "cluster-host", problem, remedy, "")
        elif place.device_id != device.id:
            problem = f"in the cluster file it is device {device.id} of {address}"
            yield Finding(path, f"device {place.device_id}", "cluster-device", problem, remedy, "")
        elif named and device.ip and place.device_ip and device.ip not in place.device_ip.split(","):
            problem = f"in the cluster file device {device.id} of {address} has {device.ip}"
            ask = "ask the host: `vpred-launch ranktable generate --discover --to hosts`"
            yield Finding(path, f"device_ip {shown(place.device_ip)}", "cluster-ip", problem, ask, "")
