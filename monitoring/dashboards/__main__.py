"""Writes the dashboards: python -m monitoring.dashboards FOLDER, for a checkout monitoring/stack/grafana/dashboards."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from monitoring.dashboards.builder import Dashboard
from monitoring.dashboards.hosts import HOSTS
from monitoring.dashboards.npus import NPUS
from monitoring.dashboards.ranks import RANKS
from monitoring.dashboards.run import RUN
from monitoring.dashboards.runs import RUNS

DASHBOARDS = (RUNS, RUN, RANKS, NPUS, HOSTS)


def rendered(dashboard: Dashboard) -> str:
    """Return the text of a dashboard's file."""
    return json.dumps(dashboard.json(), indent=1, ensure_ascii=False) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Write one file for each dashboard. Returns 2 when the folder cannot be written."""
    parser = argparse.ArgumentParser(
        prog="python -m monitoring.dashboards", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("folder", type=Path, help="folder for the JSON files; it is made when it is missing")
    folder: Path = parser.parse_args(argv).folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for dashboard in DASHBOARDS:
            (folder / f"{dashboard.uid}.json").write_text(rendered(dashboard), encoding="utf-8")
    except OSError as error:
        print(f"{folder}: cannot be written ({error.strerror}); name another folder", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
