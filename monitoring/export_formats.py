"""Writes a run's tables as CSV, as Parquet, and as event files of TensorBoard."""

import csv
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from monitoring.errors import MonitorError
from monitoring.records import Row, step_parts
from monitoring.tables import STEP_COLUMNS, VALIDATION_COLUMNS, Columns, Tables

EVENTS = "events.out.tfevents.vpred"  # TensorBoard looks for "tfevents" in a name
_ROWS_PER_GROUP = 1 << 16
_SCALARS = {
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "learning_rate": "train/learning_rate",
    "loss_scale": "train/loss_scale",
    "images_per_second": "speed/images_per_second",
    "mfu_ratio": "speed/mfu_ratio",
    "step_seconds": "speed/step_seconds",
}


def write_csv(tables: Tables, folder: Path) -> None:
    """Write metrics.csv and validation.csv. A value that a history lacks is an empty cell, NaN is nan."""
    for name, columns, rows in _tables(tables):
        with (folder / f"{name}.csv").open("x", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)


def _cell(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


def write_parquet(tables: Tables, folder: Path) -> None:
    """Write metrics.parquet and validation.parquet. A value that a history lacks is null.

    Raises MonitorError: when PyArrow is not installed.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise _missing("parquet", "PyArrow") from None
    types = {"int": pa.int64(), "float": pa.float64(), "bool": pa.bool_(), "str": pa.string()}
    for name, columns, rows in _tables(tables):
        schema = pa.schema([(column, types[kind]) for column, kind in columns.items()])
        with parquet.ParquetWriter(folder / f"{name}.parquet", schema) as writer:
            while group := list(islice(rows, _ROWS_PER_GROUP)):
                writer.write_table(pa.Table.from_pylist(group, schema))


def write_events(tables: Tables, folder: Path) -> None:
    """Write one event file whose step axis is the samples seen and whose times are those of the steps.

    The format keeps values as float32. TensorBoard itself cannot write a time that has passed, so tensorboardX does.
    Raises MonitorError: when tensorboardX is not installed.
    """
    try:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.record_writer import RecordWriter
    except ModuleNotFoundError:
        raise _missing("tensorboard", "tensorboardX") from None
    writer = RecordWriter(str(folder / EVENTS))
    try:
        writer.write(Event(file_version="brain.Event:2", wall_time=0.0).SerializeToString())
        for row, scalars in _scalars(tables):
            if row["samples_seen"] is None:
                continue
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
            event = Event(wall_time=row["unix_s"] or 0.0, step=row["samples_seen"], summary=Summary(value=values))
            writer.write(event.SerializeToString())
        writer.flush()
    finally:
        writer.close()


def _scalars(tables: Tables) -> Iterator[tuple[Row, dict[str, float]]]:
    """Yield each row and its values by tag."""
    for row in tables.steps():
        scalars = {tag: row[name] for name, tag in _SCALARS.items() if row[name] is not None}
        scalars |= {f"step_part/{part}_s": seconds for part, seconds in step_parts(row).items()}
        yield row, scalars
    for row in tables.held_out():
        weights = f"validation_{row['weights']}"
        if row["bin"] == "all":
            yield row, {f"{weights}/loss": row["loss"], f"{weights}/standard_error": row["standard_error"]}
        else:
            yield row, {f"{weights}/loss_log_snr_{row['log_snr']}": row["loss"]}


def _tables(tables: Tables) -> Iterator[tuple[str, Columns, Iterator[Row]]]:
    yield "metrics", STEP_COLUMNS, tables.steps()
    yield "validation", VALIDATION_COLUMNS, tables.held_out()


def _missing(form: str, package: str) -> MonitorError:
    return MonitorError(f"--to {form}: needs {package}; pip install 'vpred[export]'")


FORMATS: dict[str, Callable[[Tables, Path], None]] = {
    "csv": write_csv,
    "parquet": write_parquet,
    "tensorboard": write_events,
}
FILES = {f"{name}.{form}" for name in ("metrics", "validation") for form in ("csv", "parquet")} | {EVENTS}
