"""Runs the table of checks on this rank."""

import logging
from collections.abc import Mapping

from launcher.contract.exit_codes import ExitCode
from vpred_train.doctor.check import Check, Measured
from vpred_train.doctor.station import Station

logger = logging.getLogger(__name__)


def examine(station: Station, checks: Mapping[str, Check]) -> ExitCode:
    """Run all checks in the order of the table. All ranks call it. Findings are results, not failures.

    An error outside of the checks, such as a full disk, ends all ranks.
    """
    try:
        run(station, checks)
    except BaseException:  # without an abort the other ranks would wait for this one
        logger.exception("rank %d on %s failed", station.identity.rank, station.identity.hostname)
        station.collective.abort(ExitCode.FAILED)
    station.collective.close()
    return ExitCode.OK


def run(station: Station, checks: Mapping[str, Check]) -> None:
    """Run the checks and record what each finds."""
    planned = {name: check.items_of(station) for name, check in checks.items()}
    recorder, collective = station.recorder, station.collective
    recorder.total = sum(map(len, planned.values()))
    for name, items in planned.items():
        check = checks[name]
        recorder.begin(name)
        if check.at_once or check.collective:
            collective.barrier()
        for item in items:
            recorder.begin(name, item.subject)
            raised = False
            try:
                measured = item.measure()
            except Exception as error:  # libraries of a device raise exceptions of any kind, and each is a finding
                logger.exception("%s: %s", name, item.subject)
                measured, raised = Measured(first_line(error), verdict="failed", wanted="no error"), True
            recorder.add(item.result(name, measured))
            if measured.verdict == "failed":
                logger.error("%s: %s: %s", name, item.subject, measured.found)
            if raised and check.collective and collective.world_size > 1:
                collective.abort(ExitCode.FAILED)  # the other ranks wait inside the item
    collective.barrier()  # ranks leave together: one that ends early looks like a failure
    recorder.end()


def first_line(error: Exception) -> str:
    """Return the kind of an error and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
