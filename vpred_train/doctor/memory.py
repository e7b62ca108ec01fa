"""Compares the memory plan of the recipe with the memory of the device, or of the host on cpu."""

import resource
from collections.abc import Sequence
from functools import partial

from vpred_train import runtime
from vpred_train.doctor.check import Item, Measured
from vpred_train.doctor.machine import memory_bytes
from vpred_train.doctor.station import Station
from vpred_train.estimates.memory import memory_plan

REMEDY = "more ranks with zero_stage 1, recompute: true, or a smaller batch; vpred-train --memory-plan lists the parts"


def items(station: Station) -> Sequence[Item]:
    """List the plan and the peak so far."""
    return [
        Item("plan of the recipe", partial(plan, station), REMEDY),
        Item("peak of the checks", partial(peak, station)),
    ]


def plan(station: Station) -> Measured:
    """Compare the arrays that the recipe needs with what there is. Activations are not in the plan."""
    ranks = station.identity.world_size
    found = memory_plan(station.config, ranks, station.accelerator.name, station.accelerator.engine)
    if station.on_cpu:
        together = station.identity.local_size
        needed, there = found.total_bytes("host") * together, memory_bytes(station)
        where = f"on the host of {together} rank(s)"
    else:
        needed, there = found.total_bytes("device"), memory_bytes(station)
        where = "on the device"
    fits = needed <= there
    return Measured(
        f"{needed / 1e9:.2f} of {there / 1e9:.1f} GB {where}, without activations",
        "ok" if fits else "failed",
        "fits",
        needed / 1e9,
        "GB needed",
    )


def peak(station: Station) -> Measured:
    """Report the most memory that this rank has held."""
    if station.on_cpu:
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    else:
        peak_bytes = runtime.device_memory()["peak"]
    return Measured(f"{peak_bytes / 1e9:.2f} GB", figure=peak_bytes / 1e9, unit="GB")
