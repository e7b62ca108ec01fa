"""HCCL rank table 1.0: Atlas training 910A, A2 (910B), 300I Duo and A3 in AI-server mode.

Every scalar is a JSON string (HCCL answers EI0017 to a number). Ranks must not interleave across servers, and
MindSpore wants them in the dictionary order of server_id.
"""

import json

from launcher.cluster import ClusterConfig


def rank_table(cluster: ClusterConfig) -> str:
    """The table for `cluster` (accelerator ascend) as the JSON text of a file ending in .json.

    `device_ip` is written where the cluster file gives it; it may be absent on a single server only (A2, A3).
    """
    servers = []
    rank = 0
    for host in cluster.ordered_hosts:
        devices = []
        for device in host.devices:
            entry = {"device_id": str(device.id), "rank_id": str(rank)}
            if device.ip is not None:
                entry["device_ip"] = device.ip
            devices.append(entry)
            rank += 1
        servers.append({"server_id": host.address, "device": devices})
    table = {
        "version": "1.0",
        "server_count": str(len(servers)),
        "server_list": servers,
        "status": "completed",
    }
    return json.dumps(table, indent=2) + "\n"
