"""Objects of custom kinds against the CustomResourceDefinitions that their projects publish.

They are too large for this repository: DIR/tools/NAME/crds/*.yaml beside the checkout has them, or the folder that
VPRED_CRDS names. Without them the tests that need them skip.
"""

import os
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from support import CHECKOUT


@cache
def crds() -> dict[tuple[str, str], dict[str, Any]]:
    """(apiVersion, kind) -> the schema of a custom kind."""
    named = os.environ.get("VPRED_CRDS")
    files = Path(named).glob("*.yaml") if named else CHECKOUT.parent.glob("*/tools/*/crds/*.yaml")
    found = {}
    for file in files:
        crd = yaml.safe_load(file.read_text())
        for version in crd["spec"]["versions"]:
            schema = version["schema"]["openAPIV3Schema"]
            found[f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"]] = schema
    return found


def schema_of(found: dict[str, Any]) -> dict[str, Any]:
    """The custom kind's schema. Skips the test where there is none."""
    schema = crds().get((found["apiVersion"], found["kind"]))
    if schema is None:
        pytest.skip(f"no CustomResourceDefinition of {found['kind']} beside the checkout; set VPRED_CRDS")
    return schema


def strict(schema: Any) -> Any:
    """An OpenAPI schema of a CRD as JSON Schema that refuses unknown fields, as kubectl's strict validation does."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if made.pop("x-kubernetes-int-or-string", None) is True:
        made.pop("anyOf", None)
        made["type"] = ["integer", "string"]
    if made.pop("nullable", None) is True and "type" in made:
        made["type"] = [made["type"], "null"]
    is_object = isinstance(made.get("properties"), dict) and made.get("type") == "object"
    if is_object and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def faults_of_custom_kind(found: dict[str, Any]) -> list[str]:
    schema = strict(schema_of(found))
    schema["properties"]["metadata"] = {"type": "object"}
    return [
        f"{error.json_path}: {error.message[:200]}" for error in jsonschema.Draft7Validator(schema).iter_errors(found)
    ]
