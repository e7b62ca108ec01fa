"""A rank of the doctor with faults in its table of checks: a wrong layer, a wrong collective, a slow rank 1."""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from vpred_train.commands import doctor
from vpred_train.doctor.station import Station
from vpred_train.entry import prepare

SLOWER = 8  # times the work


def plant() -> None:
    """Replace a row of each table. MindSpore has been set up."""
    from mindspore import Tensor, nn, ops

    from vpred_train.doctor import exchanges, operations, speeds

    class TanhGelu(nn.Cell):
        """The approximation that other frameworks call gelu."""

        def construct(self, x: Tensor) -> Tensor:
            return 0.5 * x * (1.0 + ops.tanh(0.7978845608 * (x + 0.044715 * x**3)))

    def off_by_one(collective: Any, values: Any) -> Any:
        collective.sum_(values)
        values[7] += collective.rank
        return values

    def slow(station: Station) -> Callable[[], Any]:
        work = right.make(station)
        return work if station.identity.rank != 1 else lambda: [work() for _ in range(SLOWER)]

    right = speeds.SPEEDS["matrix products, float32"]
    operations.OPERATIONS["GELU"] = replace(operations.OPERATIONS["GELU"], make=lambda rng: TanhGelu())
    exchanges.EXCHANGES["all-reduce"] = replace(exchanges.EXCHANGES["all-reduce"], run=off_by_one)
    speeds.SPEEDS["matrix products, float32"] = replace(right, make=slow)


def main() -> int:
    arguments = doctor.parse(None)
    station = doctor.start(arguments)
    plant()
    from vpred_train.doctor.examination import examine
    from vpred_train.doctor.table import AFTER_RESTART, CHECKS

    return examine(station, CHECKS if arguments.before is None else AFTER_RESTART)


if __name__ == "__main__":
    prepare()
    sys.exit(main())
