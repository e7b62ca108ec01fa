"""Writes the dashboards: python -m monitoring.dashboards FOLDER, for a checkout monitoring/stack/grafana/dashboards."""

import json
import sys
from collections.abc import Sequence

from monitoring.dashboards.builder import Dashboard
from monitoring.dashboards.hosts import HOSTS
from monitoring.dashboards.npus import NPUS
from monitoring.dashboards.ranks import RANKS
from monitoring.dashboards.run import RUN
from monitoring.dashboards.runs import RUNS
from monitoring.file_folder import write_folder

DASHBOARDS = (RUNS, RUN, RANKS, NPUS, HOSTS)


def rendered(dashboard: Dashboard) -> str:
    """Return the text of a dashboard's file."""
    return json.dumps(dashboard.json(), indent=1, ensure_ascii=False) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Write one file for each dashboard. Returns 2 when the folder cannot be written."""
    texts = {f"{dashboard.uid}.json": rendered(dashboard) for dashboard in DASHBOARDS}
    return write_folder(argv, "monitoring.dashboards", (__doc__ or "").splitlines()[0], texts)


if __name__ == "__main__":
    sys.exit(main())
