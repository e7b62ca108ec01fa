"""Makes the LaunchPlan: everything that a launch will do, as one frozen value. Making it changes nothing."""

import json
import shlex
from functools import partial
from itertools import groupby
from pathlib import Path

from launcher.cluster.config import ANY_ADDRESS, ClusterConfig
from launcher.cluster.hosts import Host
from launcher.cluster.supervision import SupervisionSettings
from launcher.contract.config import Section, dump_yaml
from launcher.contract.run_dir import RunDir
from launcher.planning.mpirun import ROOT_VARIABLES, Mpirun
from launcher.planning.start_command import hostfile_lines, slots, srun_variables, start_argv
from launcher.ranktable.controller_table import chosen_table
from launcher.records.run_facts import printable
from launcher.records.targets import render, target_groups

# Ports that HCCL takes on each host: HCCL_IF_BASE_PORT and the 31 after it, and the NPUs' port.
_HCCL_BASE_PORT = 60000
_HCCL_PORTS = 32
_DEVICE_PORT = 16666
_SHOWN_ALIKE = 3
_SHOWN_LETTERS = 400


class RankPlace(Section):
    """Says where a rank runs.

    device_id: the physical device, None on cpu
    metrics: host:port to scrape, None without metrics
    """

    rank: int
    host: str
    local_rank: int
    device_id: int | None
    metrics: str | None


class LaunchPlan(Section):
    """Plans one attempt.

    run_name: value of the label `run` of its metrics
    shared_targets: file for Prometheus that lists its ranks while it runs, None for none
    metrics_tls: ranks serve their metrics over HTTPS
    grafana_url: address of Grafana, None for none
    starter: the program that starts the ranks
    ports: ports that must be free, (first, last) on every host, but "scheduler" on the first host alone
    forwarded: variables that cross to other hosts
    argv: starts all ranks; it runs in the folder with the hostfile
    environment: variables added to the launcher's environment
    files: path -> text that it gets before the start
    """

    run_dir: Path
    run_name: str
    shared_targets: Path | None
    metrics_tls: bool
    grafana_url: str | None
    attempt: int
    accelerator: str
    engine: str
    starter: str
    init: str
    binding: str
    ports: dict[str, tuple[int, int]]
    ranks: tuple[RankPlace, ...]
    forwarded: tuple[str, ...]
    argv: tuple[str, ...]
    environment: dict[str, str]
    files: dict[Path, str]
    stop_grace_s: float
    supervision: SupervisionSettings

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(place.host for place in self.ranks))

    def to_json(self) -> str:
        """Render indented JSON. It has only the paths of the files, since they lie beside it."""
        document = self.model_dump(mode="json") | {"files": [str(path) for path in self.files]}
        return json.dumps(document, indent=2) + "\n"


def make_plan(
    cluster: ClusterConfig,
    mpirun: Mpirun | None,
    python: Path,
    trainer: tuple[str, ...],
    run_dir: Path,
    attempt: int,
    train_yaml: str,
    profiled_steps: int = 0,
) -> LaunchPlan:
    """Plan to start `trainer` (an argv) on every rank of `cluster`.

    mpirun: None where the cluster needs none
    run_dir: an absolute path

    Raises ConfigError: when this mpirun cannot start the cluster, or the rank table is refused.
    """
    run = RunDir(run_dir)
    ranks = _places(cluster)
    files = {
        run.cluster_yaml: dump_yaml(cluster),
        run.train_yaml: train_yaml,
        run.hostfile: hostfile_lines(cluster, partial(slots, cluster)),
        run.targets_json: render(
            target_groups(run_name(cluster, run_dir), run_dir, ranks, {}, tls=serves_tls(cluster))
        ),
    }
    if cluster.init == "rank_table":
        files[run.rank_table_json] = chosen_table(cluster)
    environment = dict(cluster.environment)
    if cluster.launcher.kind == "srun":
        environment = srun_variables(cluster, run.hostfile) | environment
    if cluster.launcher.allow_run_as_root:
        environment |= ROOT_VARIABLES
    trainer = (*trainer, *_trainer_options(cluster, run, attempt, ranks), *profile_options(profiled_steps))
    return LaunchPlan(
        run_dir=run_dir,
        run_name=run_name(cluster, run_dir),
        shared_targets=shared_targets(cluster, run_dir),
        metrics_tls=serves_tls(cluster),
        grafana_url=None if cluster.metrics is None else cluster.metrics.grafana_url,
        attempt=attempt,
        accelerator=cluster.accelerator,
        engine=cluster.chosen_engine,
        ranks=ranks,
        starter=_starter(cluster, mpirun, python),
        init=cluster.init,
        binding=cluster.launcher.binding,
        ports=ports(cluster),
        argv=start_argv(cluster, mpirun, python, run, attempt, trainer),
        forwarded=(*cluster.launcher.forward_variables, *cluster.environment),
        environment=environment,
        files=files,
        stop_grace_s=cluster.launcher.stop_grace_s,
        supervision=cluster.supervision,
    )


def run_name(cluster: ClusterConfig, run_dir: Path) -> str:
    """Return the value of the label `run`. Bytes of a file name that are not UTF-8 are written as \\udcXX."""
    named = None if cluster.metrics is None else cluster.metrics.run_name
    return named or printable(run_dir.name)


def shared_targets(cluster: ClusterConfig, run_dir: Path) -> Path | None:
    """Return the file in `metrics.targets_folder` that lists the ranks of this run, None without such a folder."""
    folder = None if cluster.metrics is None else cluster.metrics.targets_folder
    return None if folder is None else folder / f"{cluster.name}-{run_name(cluster, run_dir)}.json"


def serves_tls(cluster: ClusterConfig) -> bool:
    return cluster.metrics is not None and cluster.metrics.tls is not None


def _starter(cluster: ClusterConfig, mpirun: Mpirun | None, python: Path) -> str:
    if cluster.launcher.kind == "srun":
        return "srun, one step"
    return str(mpirun) if mpirun else f"{python} -m vpred_train.entry launcher.rank.node"


def describe(plan: LaunchPlan) -> str:
    """Describe the plan for a reader: at most a page for any number of hosts that are alike."""
    lines = [
        f"run directory  {plan.run_dir} (attempt {plan.attempt})",
        f"started by     {plan.starter}; ranks meet by {plan.init}, bound to {plan.binding}",
        f"ports          {', '.join(f'{name} {_span(*span)}' for name, span in plan.ports.items())}",
        f"variables      {' '.join(plan.forwarded) or 'none'} (cross to other hosts)",
        *(f"  {name}={value}" for name, value in plan.environment.items()),
        f"files          {' '.join(path.name for path in plan.files)}",
        f"ranks          {len(plan.ranks)} on {len(plan.hosts)} host(s), accelerator {plan.accelerator}, "
        f"engine {plan.engine}",
    ]
    for hosts in _runs_alike(plan):
        shown = hosts if len(hosts) <= _SHOWN_ALIKE + 2 else [*hosts[:_SHOWN_ALIKE], hosts[-1]]
        lines += map(_host_line, shown[:-1])
        if len(shown) < len(hosts):
            lines.append(f"  ... {len(hosts) - len(shown):,} more like them (--json lists all)")
        lines.append(_host_line(shown[-1]))
    lines.append(f"command        {shlex.join(map(_short, plan.argv))}")
    return "\n".join(lines)


def _runs_alike(plan: LaunchPlan) -> list[list[list[RankPlace]]]:
    """Group the ranks by host, and group consecutive hosts that have the same devices and ports."""
    hosts = [list(places) for _, places in groupby(plan.ranks, lambda place: place.host)]
    alike = groupby(
        hosts, lambda places: [(each.device_id, (each.metrics or "").rpartition(":")[2]) for each in places]
    )
    return [list(each) for _, each in alike]


def _host_line(places: list[RankPlace]) -> str:
    devices = ",".join(str(place.device_id) for place in places if place.device_id is not None)
    first, last = places[0], places[-1]
    span = f"rank {first.rank}" if first is last else f"ranks {first.rank}-{last.rank}"
    metrics = first.metrics if first is last else f"{first.metrics} to {last.metrics}"
    served = f", metrics {metrics}" if first.metrics else ", no metrics"
    return f"  {first.host}: {span}{f', devices {devices}' if devices else ''}{served}"


def _short(word: str) -> str:
    """Shorten a word of a command for a reader. A list with an entry for each rank keeps its two ends."""
    return word if len(word) <= _SHOWN_LETTERS else f"{word[: _SHOWN_LETTERS - 40]}...{word[-20:]}"


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def ports(cluster: ClusterConfig) -> dict[str, tuple[int, int]]:
    """Return the ports that each use takes on a host: (first, last)."""
    spans = {"metrics": (each[0], each[-1])} if (each := cluster.metrics_ports) else {}
    if cluster.init == "dynamic_cluster":
        spans["scheduler"] = (cluster.network.scheduler_port,) * 2
    if cluster.accelerator == "ascend":
        told = cluster.environment.get("HCCL_IF_BASE_PORT", "")
        base = int(told) if told.isdecimal() else _HCCL_BASE_PORT
        spans |= {"hccl": (base, base + _HCCL_PORTS - 1), "device": (_DEVICE_PORT, _DEVICE_PORT)}
    return spans


def _places(cluster: ClusterConfig) -> tuple[RankPlace, ...]:
    places: list[RankPlace] = []
    for host in cluster.ordered_hosts:
        for local_rank in range(cluster.ranks_on(host)):
            places.append(
                RankPlace(
                    rank=len(places),
                    host=host.address,
                    local_rank=local_rank,
                    device_id=host.devices[local_rank].id if host.devices else None,
                    metrics=_metrics_target(cluster, host, local_rank),
                )
            )
    return tuple(places)


def _metrics_target(cluster: ClusterConfig, host: Host, local_rank: int) -> str | None:
    """Return host:port where Prometheus reaches the metrics of a rank when its port is free, None without metrics."""
    if cluster.metrics is None:
        return None
    address = host.address if cluster.metrics.address in ANY_ADDRESS else cluster.metrics.address
    bracketed = f"[{address}]" if ":" in address else address
    return f"{bracketed}:{cluster.metrics.base_port + local_rank}"


def _trainer_options(
    cluster: ClusterConfig, run: RunDir, attempt: int, ranks: tuple[RankPlace, ...]
) -> tuple[str, ...]:
    options = ["--run-dir", str(run.root), "--attempt", str(attempt), *cluster.device_options]
    if (metrics := cluster.metrics) is not None:
        options += ["--run-name", run_name(cluster, run.root)]
        options += ["--metrics-address", metrics.address, "--metrics-port-base", str(metrics.base_port)]
        options += ["--metrics-port-span", str(metrics.port_span), "--metrics-linger-s", f"{metrics.linger_s:g}"]
        if metrics.tls is not None:
            options += ["--metrics-certificate", str(metrics.tls.certificate), "--metrics-key", str(metrics.tls.key)]
            options += ["--metrics-client-ca", str(metrics.tls.client_ca)] if metrics.tls.client_ca else []
        options += ["--metrics-users", str(metrics.users_file)] if metrics.users_file else []
    options += ["--collective-timeout-s", f"{cluster.network.collective_timeout_s:g}"]
    if cluster.init == "rank_table":
        options += ["--rank-table", str(run.rank_table_json)]
    if cluster.accelerator == "ascend":
        options += ["--device-ids", ",".join(str(place.device_id) for place in ranks)]
    return tuple(options)


def profile_options(steps: int) -> list[str]:
    """Return the trainer's options to record `steps` steps with MindSpore's profiler."""
    return ["--profile", str(steps)] if steps else []
