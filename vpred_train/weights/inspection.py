"""Makes the reports of `vpred-weights inspect` on full weights and on LoRA weights."""

import math
from collections import Counter
from typing import Any

from launcher.contract.config import ConfigError
from vpred_train.diffusion.parameterization import ParameterizationRecord
from vpred_train.weights.layouts.detection import is_unused
from vpred_train.weights.layouts.read_write import WeightSet, available_weight_sets, require_finite, weights_of
from vpred_train.weights.layouts.tensor_shapes import COMPONENTS, stability_shapes
from vpred_train.weights.layouts.weight_source import WeightSource
from vpred_train.weights.lora.files import LoraSource, read_factors
from vpred_train.weights.record_lookup import find_record

Report = dict[str, Any]


def inspection(source: WeightSource, values: bool = True) -> Report:
    """Return the report on `source`.

    values: whether the tensors are read and checked for NaN and inf.
    `fault` in the report is empty when the tensors fit the model and, if read, are finite.
    `record` is the record that the source holds.
    `declares` is the record made from its markers, or from the scheduler of a diffusers folder.
    """
    fault, networks, declared = "", {}, None
    try:
        whole = [weights_of(source, which) for which in _sets(source)]  # checks the shapes and the types
        shapes = stability_shapes(source.model)
        for network, prefix in COMPONENTS.items():
            sizes = [math.prod(shape) for name, shape in shapes.items() if name.startswith(prefix)]
            networks[network] = {"tensors": len(sizes), "parameters": sum(sizes)}
        declared = find_record(source)
        for tensors in whole if values else ():
            require_finite(tensors)
    except ConfigError as error:
        fault = str(error)
    return {
        "path": str(source.path),
        "layout": source.layout,
        "container": source.container,
        "sets": list(available_weight_sets(source, source.model)),
        "networks": networks,
        "dtypes": dict(Counter(tensor.dtype for tensor in source.tensors.values()).most_common()),
        "tensors": len(source.tensors),
        "unused": sum(is_unused(name, source.model) for name in source.tensors),
        "bytes": sum(tensor.stored_bytes for tensor in source.tensors.values()),
        "record": source.record.model_dump(mode="json") if source.record else None,
        "declares": declared.model_dump(mode="json") if declared and not source.record else None,
        "values_read": values,
        "fault": fault,
    }


def lora_inspection(source: LoraSource) -> Report:
    """Return the report on LoRA weights; `fault` is empty when the factors fit the model and are finite."""
    fault, factors = "", {}
    try:
        factors = read_factors(source)
    except ConfigError as error:
        fault = str(error)
    networks = {
        network: sum(target.weight.startswith(prefix) for target in factors) for network, prefix in COMPONENTS.items()
    }
    return {
        "path": str(source.path),
        "layout": source.layout,
        "container": source.container,
        "matrices": {network: count for network, count in networks.items() if count},
        "ranks": sorted({each.rank for each in factors.values()}),
        "scales": sorted({each.scale for each in factors.values()}),
        "parameters": sum(each.down.size + each.up.size for each in factors.values()),
        "record": source.record.model_dump(mode="json") if source.record else None,
        "fault": fault,
    }


def lines_of(report: Report) -> list[str]:
    """Format the report of `inspection` as lines of text."""
    lines = [
        f"{report['path']}: {report['layout']} layout in {report['container']}, {' and '.join(report['sets'])} weights"
    ]
    for network, counts in report["networks"].items():
        lines.append(f"   {network}: {counts['tensors']} tensors, {counts['parameters']:,} parameters")
    lines.append(f"   types: {', '.join(f'{count} {dtype}' for dtype, count in report['dtypes'].items())}")
    lines.append(f"   {report['bytes']:,} bytes in {report['tensors']} tensors, {report['unused']} of them unused")
    lines.append(f"   record: {_declared(report)}")
    fits = "fits the model" if report["values_read"] else "fits the model; its values were not read"
    return [*lines, f"   {report['fault'] or fits}"]


def lora_lines_of(report: Report) -> list[str]:
    """Format the report of `lora_inspection` as lines of text."""
    return [
        f"{report['path']}: LoRA, {report['layout']} layout in {report['container']}",
        *(f"   {network}: {count} matrices adapted" for network, count in report["matrices"].items()),
        f"   ranks {report['ranks']}, scales {report['scales']}, {report['parameters']:,} parameters",
        f"   record: {_declared(report)}",
        f"   {report['fault'] or 'fits the model'}",
    ]


def _sets(source: WeightSource) -> tuple[WeightSet, ...]:
    return ("raw", "ema") if len(available_weight_sets(source, source.model)) > 1 else ("auto",)


def _declared(report: Report) -> str:
    record = report["record"] or report.get("declares")
    if record is None:
        return "none"
    found = ParameterizationRecord.model_validate(record)
    text = f"{found.diffusion.prediction_type}-prediction"
    if report["record"]:
        text += f", {found.samples_seen} samples seen"
    else:
        text = f"none, but declares {text}"
    return f"{text}, zero terminal SNR" if found.diffusion.zero_terminal_snr else text
