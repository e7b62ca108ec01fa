"""Manifests against the schemas of Kubernetes and of the custom kinds: no unknown field, no wrong type.

Kubernetes' own schemas come with kubernetes-validate. Those of custom kinds are CustomResourceDefinitions as their
projects publish them. They are too large for this repository: DIR/tools/NAME/crds/*.yaml beside the checkout has them,
or the folder that VPRED_CRDS names. Without them these tests skip.
"""

import copy
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest

from support.custom_kinds import faults_of_custom_kind, schema_of
from support.manifests import CASES, objects, templates

VERSIONS = ("1.31", "1.33", "1.37")
ALL = pytest.mark.parametrize("case", CASES)


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
