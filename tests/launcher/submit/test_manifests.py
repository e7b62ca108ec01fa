"""Manifests for Kubernetes: golden files, what their controllers demand beyond schemas, and what is refused.

To make the golden files again: PYTHONPATH=.:tests python tests/launcher/submit/test_manifests.py
"""

import re
import subprocess
from pathlib import Path

import pytest

from launcher.cluster.config import ClusterConfig
from launcher.contract.config import ConfigError, load_document
from launcher.submit.kubernetes import Kubernetes
from launcher.submit.pods import KEPT_OUT
from support import TESTS
from support.manifests import ASCEND, CASES, CPU, manifest, objects, submission, templates, workload

GOLDEN = TESTS / "launcher" / "golden"
ALL = pytest.mark.parametrize("case", CASES)


@ALL
def test_manifests_are_golden(case: str) -> None:
    config, overrides = CASES[case]
    assert manifest(config, *overrides) == (GOLDEN / f"manifest_{case}.yaml").read_text()


@ALL
def test_documents_in_the_manifest_load_back(case: str, tmp_path: Path) -> None:
    data = next(each["data"] for each in objects(case) if each.get("immutable") and each["kind"] == "ConfigMap")
    (tmp_path / "cluster.yaml").write_text(data["cluster.yaml"])
    config, overrides = CASES[case]
    given = submission(config, *overrides)
    assert load_document(ClusterConfig, tmp_path / "cluster.yaml") == given.cluster
    assert data["recipe.yaml"] == given.train_yaml


@ALL
def test_names_have_room_for_what_controllers_add(case: str) -> None:
    names = [each["metadata"]["name"] for each in objects(case)]
    assert all(re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) and len(name) <= 63 for name in names)
    longest = "m" * 46
    assert Kubernetes().render(submission(CPU, run=longest))
    with pytest.raises(ConfigError, match="at most 46"):
        Kubernetes().render(submission(CPU, run=longest + "m"))


@ALL
def test_pods_never_start_again_by_themselves_where_policies_count(case: str) -> None:
    """A Job with podFailurePolicy must have Never, which schemas do not say. MPIJob refuses ExitCode and Always."""
    found = workload(case)
    policies = [each["spec"]["restartPolicy"] for each in templates(found["spec"])]
    if found["kind"] == "MPIJob":
        replicas = found["spec"]["mpiReplicaSpecs"]
        assert {name: each["restartPolicy"] for name, each in replicas.items()} == {
            "Launcher": "Never",
            "Worker": "OnFailure",
        }
    else:
        assert set(policies) == {"Never"}


@ALL
def test_npus_are_requested_as_they_are_limited(case: str) -> None:
    config, _ = CASES[case]
    counts = []
    for template in templates(workload(case)["spec"]):
        (container,) = template["spec"]["containers"]
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        counts.append(requests.get("huawei.com/Ascend910", 0))
        assert limits.get("huawei.com/Ascend910", 0) == counts[-1]
        assert limits["memory"] == requests["memory"]
    assert set(counts) == ({0} if config == CPU else {8, *([0] if case == "ascendjob" else [])})


def test_an_ascendjob_has_the_names_and_the_scheduler_that_its_operator_demands() -> None:
    specs = workload("ascendjob")["spec"]["replicaSpecs"]
    assert set(specs) == {"Scheduler", "Worker"} and specs["Scheduler"]["replicas"] == 1
    for each in specs.values():
        (container,) = each["template"]["spec"]["containers"]
        assert container["name"] == "ascend"
        assert {"name": "ascendjob-port", "containerPort": 2222} in container["ports"]
    assert workload("ascendjob")["spec"]["runPolicy"]["schedulingPolicy"]["minAvailable"] == 1 + 4


def test_policies_of_volcano_pass_its_webhook() -> None:
    """It refuses an event and an exit code in one policy, the exit code 0, and anything given twice."""
    spec = workload("volcano")["spec"]
    for policies in (spec["policies"], *(task.get("policies", []) for task in spec["tasks"])):
        keys = [(each.get("event"), each.get("exitCode")) for each in policies]
        assert all((event is None) != (code is None) and code != 0 for event, code in keys)
        assert len(set(keys)) == len(keys)
    events = [each.get("event") for each in spec["policies"]]
    assert events.index("PodFailed") > max(n for n, each in enumerate(spec["policies"]) if "exitCode" in each)
    assert spec["minAvailable"] == 4 and sum(task["replicas"] for task in spec["tasks"]) == 5


def test_exit_codes_of_a_plain_job_decide_what_is_retried() -> None:
    rules = workload("job")["spec"]["podFailurePolicy"]["rules"]
    by_code = {code: each["action"] for each in rules for code in each.get("onExitCodes", {}).get("values", [])}
    assert by_code == {75: "Ignore", 2: "FailJob", 76: "FailJob"}
    names = {each["onExitCodes"]["containerName"] for each in rules if "onExitCodes" in each}
    (template,) = templates(workload("job")["spec"])
    assert names == {container["name"] for container in template["spec"]["containers"]}


@ALL
def test_pods_have_no_rights_beyond_their_user(case: str) -> None:
    for template in templates(workload(case)["spec"]):
        spec = template["spec"]
        (container,) = spec["containers"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["runAsUser"] == 10001
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "livenessProbe" not in container
        assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]]


@ALL
def test_every_mount_has_its_volume_and_its_object(case: str) -> None:
    found = objects(case)
    made = {(each["kind"], each["metadata"]["name"]) for each in found}
    for template in templates(found[0]["spec"]):
        spec = template["spec"]
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert {mount["name"] for mount in spec["containers"][0]["volumeMounts"]} == set(volumes)
        for volume in volumes.values():
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in made
            if "secret" in volume:
                assert ("Secret", volume["secret"]["secretName"]) in made


@ALL
def test_grace_is_longer_than_the_launcher_waits(case: str) -> None:
    config, overrides = CASES[case]
    stop_grace_s = submission(config, *overrides).cluster.launcher.stop_grace_s
    for template in templates(workload(case)["spec"]):
        assert template["spec"]["terminationGracePeriodSeconds"] == stop_grace_s + 60


@ALL
def test_keys_are_in_no_manifest(case: str) -> None:
    (found,) = [each for each in objects(case) if each["kind"] == "Secret"]
    assert set(found["stringData"].values()) == {KEPT_OUT}


@ALL
def test_the_selector_of_the_network_policy_finds_all_pods(case: str) -> None:
    (policy,) = [each for each in objects(case) if each["kind"] == "NetworkPolicy"]
    wanted = policy["spec"]["podSelector"]["matchLabels"].items()
    for template in templates(workload(case)["spec"]):
        assert wanted <= template["metadata"]["labels"].items()


def test_lines_of_setup_end_the_pod_when_they_fail() -> None:
    (template,) = templates(workload("job")["spec"])
    (container,) = template["spec"]["containers"]
    *shell, script, name = container["command"]
    assert (shell, name) == (["tini", "--", "bash", "-c"], "vpred-launch")
    tried = [script.replace("source /opt/site.sh", "false"), script.replace("source /opt/site.sh", "true")]
    answers = [
        subprocess.run(["bash", "-c", each, "echo", "pod", "a b"], capture_output=True, text=True) for each in tried
    ]
    assert [(each.returncode, each.stdout) for each in answers] == [(1, ""), (0, "pod a b\n")]


@pytest.mark.parametrize(
    ("config", "override", "message"),
    [
        (CPU, "submit.kubernetes.image=null", "submit.kubernetes.image: found nothing"),
        (CPU, "submit.kubernetes.workload=ascendjob", "submit.kubernetes.workload: found 'ascendjob' (it is for"),
        (CPU, "submit.kubernetes.rank_table=/t/hccl.json", "submit.kubernetes.rank_table: remove it (no controller"),
        (ASCEND, "submit.kubernetes.workload=mpijob", "submit.kubernetes.rank_table: remove it (no controller"),
        (CPU, "submit.kubernetes.labels={app.kubernetes.io/name: x}", "labels: remove app.kubernetes.io/name"),
        (CPU, "submit.kubernetes.data_claims={}", "data.path: found '/data/images' (no pod has this path; pods have"),
    ],
)
def test_settings_that_make_no_job_are_named(config: str, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        Kubernetes().render(submission(config, override))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("config", [CPU, ASCEND])
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("submit.kubernetes.namespace=My_Space", "must be a name of at most 63"),
        ("submit.kubernetes.runs_claim=Runs", "must be a name of a-z, 0-9, - and ."),
        ("submit.kubernetes.queue=''", "must be a name of at most 63"),
        ("submit.kubernetes.run_as_user=0", "run_as_user"),
        ("submit.kubernetes.memory=4 GB", "must be a quantity as Kubernetes writes it"),
        ("submit.kubernetes.cpu='0'", "must be a quantity as Kubernetes writes it"),
        ("submit.kubernetes.image='a b'", "must be an image such as"),
        ("submit.kubernetes.data_claims={d: data}", "give an absolute path below /"),
        ("submit.kubernetes.data_claims={d: /runs/data}", "a pod has /runs for something else"),
        ("submit.kubernetes.data_claims={d: /etc}", "a pod has /etc/vpred for something else"),
        ("submit.kubernetes.data_claims={d: /x, e: /x}", "two claims are mounted at the same path"),
        ("submit.kubernetes.rank_table=hccl.json", "must be an absolute path that ends in .json"),
        ("submit.kubernetes.workload=cronjob", "submit.kubernetes.workload: found 'cronjob'"),
        ("submit.kubernetes.gpus=8", "gpus"),
    ],
)
def test_bad_values_are_one_line(config: str, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        submission(config, override)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("run", ["My_Run", "-mine", "mine-", "m.1", "ü"])
def test_a_run_directory_that_makes_no_name_is_refused(run: str) -> None:
    with pytest.raises(ConfigError, match="--run-dir: found"):
        Kubernetes().render(submission(CPU, run=run))


def test_documents_beyond_a_config_map_are_refused() -> None:
    recipe = f"seed: 1\nnote: {'x' * (1 << 20)}\n"
    with pytest.raises(ConfigError, match="at most 1048576 in a ConfigMap"):
        Kubernetes().render(submission(CPU, recipe=recipe))


def test_an_image_without_a_tag_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    Kubernetes().render(submission(CPU, "submit.kubernetes.image=registry.example:5000/vpred"))
    assert "has no tag and no digest" in caplog.text


def main() -> None:
    for case, (config, overrides) in CASES.items():
        (GOLDEN / f"manifest_{case}.yaml").write_text(manifest(config, *overrides))


if __name__ == "__main__":
    main()
