"""Manifests against the schemas of Kubernetes and of the custom kinds: no unknown field, no wrong type.

Kubernetes' own schemas come with kubernetes-validate. Those of custom kinds are CustomResourceDefinitions as their
projects publish them. They are too large for this repository: DIR/tools/NAME/crds/*.yaml beside the checkout has them,
or the folder that VPRED_CRDS names. Without them these tests skip.
"""

import copy
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from support import CHECKOUT
from support.manifests import CASES, objects, templates

VERSIONS = ("1.31", "1.33", "1.37")
ALL = pytest.mark.parametrize("case", CASES)


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


def faults_of_core_kind(found: dict[str, Any], version: str) -> list[str]:
    try:
        kubernetes_validate.validate(found, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message[:200]}"]
    return []


def of_core(case: str) -> Iterator[dict[str, Any]]:
    """Objects of kinds that Kubernetes itself has, and the pods of all templates."""
    found = objects(case)
    yield from (each for each in found if "." not in each["apiVersion"] or each["apiVersion"].endswith("k8s.io/v1"))
    for template in templates(found[0]["spec"]):
        yield {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "x", **template["metadata"]},
            "spec": template["spec"],
        }


@pytest.mark.parametrize("version", VERSIONS)
@ALL
def test_core_kinds_and_pods_are_valid(case: str, version: str) -> None:
    found = list(of_core(case))
    assert {"ConfigMap", "Secret", "NetworkPolicy", "Pod"} <= {each["kind"] for each in found}
    assert [fault for each in found for fault in faults_of_core_kind(each, version)] == []


@ALL
def test_custom_kinds_are_valid(case: str) -> None:
    custom = [each for each in objects(case) if each not in list(of_core(case))]
    if not custom:
        pytest.skip(f"{case} has core kinds alone")
    assert [fault for each in custom for fault in faults_of_custom_kind(each)] == []


def test_core_validation_finds_an_unknown_field_and_a_wrong_type() -> None:
    (job, *_) = objects("job")
    wrong = copy.deepcopy(job)
    wrong["spec"]["backofLimit"] = 3
    assert "backofLimit" in faults_of_core_kind(wrong, VERSIONS[0])[0]
    wrong = copy.deepcopy(job)
    wrong["spec"]["parallelism"] = "two"
    assert faults_of_core_kind(wrong, VERSIONS[0])


def test_custom_validation_finds_an_unknown_field_and_a_wrong_choice() -> None:
    (job, *_) = objects("volcano")
    wrong = copy.deepcopy(job)
    wrong["spec"]["tasks"][0]["template"]["spec"]["containers"][0]["imagee"] = "x"
    wrong["spec"]["policies"][0]["event"] = "PodGone"
    faults = faults_of_custom_kind(wrong)
    assert any("imagee" in fault for fault in faults) and any("PodGone" in fault for fault in faults)


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("job")])
def test_custom_kinds_have_no_rules_that_a_schema_cannot_say(case: str) -> None:
    """A CRD may carry rules in CEL, which nothing here evaluates. The CRDs of these kinds have none."""
    workload = objects(case)[0]
    assert "x-kubernetes-validations" not in str(schema_of(workload))
