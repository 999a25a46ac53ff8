"""The job files: each valid for the platform it is for, all of them the same run, on the image that the Containerfile makes."""

import re
import shlex
import subprocess
import sys

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator
from typer.main import get_command

from helpers import config, launch, profiles
from helpers.profiles import ROOT
from kto.cli import app
from kto.parameters import typed

FOLDER = ROOT / "job-configs"
JOB = yaml.safe_load((FOLDER / "job.yaml").read_text())
RAYJOB = yaml.safe_load((FOLDER / "rayjob.yaml").read_text())
CONTAINER = (FOLDER / "Containerfile").read_text()


def only(required: str = "", **properties) -> dict:
    """A JSON schema of an object with these keys and no others."""
    return {"type": "object", "properties": properties, "required": required.split(), "additionalProperties": False}


def each(item: dict) -> dict:
    return {"type": "array", "items": item, "minItems": 1}


TEXT, NUMBER, YES_NO = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
POD = only("spec", metadata={"type": "object"}, spec={"type": "object"})  # judged by Kubernetes' own schema
SCHEMA = only(
    "apiVersion kind metadata spec", apiVersion={"const": "ray.io/v1"}, kind={"const": "RayJob"}, metadata=only("name", name=TEXT),
    spec=only(
        "entrypoint rayClusterSpec", entrypoint=TEXT, backoffLimit=NUMBER, activeDeadlineSeconds=NUMBER, metadata=TEXTS,
        shutdownAfterJobFinishes=YES_NO, ttlSecondsAfterFinished=NUMBER, runtimeEnvYAML=TEXT, suspend=YES_NO,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
        rayClusterSpec=only(
            "headGroupSpec", rayVersion=TEXT, enableInTreeAutoscaling=YES_NO,
            headGroupSpec=only("rayStartParams template", rayStartParams=TEXTS, template=POD, serviceType=TEXT),
            workerGroupSpecs=each(only("groupName minReplicas maxReplicas rayStartParams template", groupName=TEXT, replicas=NUMBER,
                                       minReplicas=NUMBER, maxReplicas=NUMBER, numOfHosts=NUMBER, rayStartParams=TEXTS,
                                       template=POD)))))
"""Written from the Go types that KubeRay's RayJob definition is generated from (ray-operator/apis/ray/v1, rayjob_types.go and
raycluster_types.go), as no package has the definition: stricter than it, never laxer."""


def given(entrypoint: str) -> dict:
    """What the command line takes from a job's command: an error where it would not."""
    words = shlex.split(entrypoint)
    assert words[:4] == ["python", "-m", "kto", "run"]
    return get_command(app).commands["run"].make_context("run", words[4:]).params


@pytest.mark.slow
def test_anyscales_own_model_takes_the_job_file_and_refuses_a_wrong_one(tmp_path):
    code = "import sys; from anyscale.job.models import JobConfig; print(JobConfig.from_yaml(sys.argv[1]).compute_config.worker_nodes)"

    def judged(path):
        return subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)

    assert "g6e.12xlarge" in judged(FOLDER / "job.yaml").stdout
    for wrong in ({"max_retrys": 1}, {"env_vars": {"A": 1}}, {"compute_config": {"head": {}}}, {"image_uri": "a b"}):
        (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(JOB | wrong))
        assert judged(tmp_path / "wrong.yaml").returncode != 0, wrong


def test_the_rayjob_has_only_what_kuberay_knows():
    assert [error.message for error in Draft202012Validator(SCHEMA).iter_errors(RAYJOB)] == []
    wrong = yaml.safe_load((FOLDER / "rayjob.yaml").read_text().replace("backoffLimit", "maxRetries").replace("replicas: 1", 'replicas: "1"'))
    assert len(list(Draft202012Validator(SCHEMA).iter_errors(wrong))) == 2


@pytest.mark.parametrize("number", [0, 1], ids=["head", "gpu"])
def test_kubernetes_own_schema_takes_the_pods_and_refuses_wrong_ones(number):
    text = (FOLDER / "rayjob.yaml").read_text()

    def judge(old: str = "", new: str = "") -> None:
        pod = {"apiVersion": "v1", "kind": "Pod"} | groups(yaml.safe_load(text.replace(old, new)))[number]["template"]
        kubernetes_validate.validate(pod, "1.33", strict=True)

    judge()
    for old, new in (("limits:", "limit:"), ("mountPath: /mnt/shared", "mountPath: 1"), ("claimName: kto", "claim: kto"),
                     ("secretKeyRef: {name: kto, key: HF_TOKEN}", "secretKeyRef: {name: kto}")):  # fmt: skip
        with pytest.raises(kubernetes_validate.ValidationError):
            judge(old, new)


def test_kto_job_finds_the_rayjob_by_the_name_of_its_run():
    """It lists jobs with these metadata only (kto.job.listing); the storage is where `kto job fetch` looks."""
    words, metadata = given(RAYJOB["spec"]["entrypoint"]), RAYJOB["spec"]["metadata"]
    assert metadata == {"run": words["run_name"], "storage": words["storage"], "profile": words["profile"]}
    assert f"kto job logs {metadata['run']}\n" in (FOLDER / "rayjob.yaml").read_text()


@pytest.mark.parametrize("entrypoint", [JOB["entrypoint"], RAYJOB["spec"]["entrypoint"]], ids=["anyscale", "kuberay"])
def test_a_retry_means_the_same_run_and_goes_on_where_it_stopped(entrypoint):
    words = given(entrypoint)
    assert words["run_name"] == "llama3-8b" and words["resume"] == "if-any"
    assert words["storage"].startswith("/mnt/") and not words["storage"].startswith("/mnt/cluster_storage")
    assert profiles.load(words["profile"]).gpu
    assert JOB["max_retries"] == RAYJOB["spec"]["backoffLimit"] == 3


def test_no_variable_is_set_in_two_places_and_no_token_stands_in_a_file(run):
    run.config_file.write_text("model_name_or_path: org/name\n")
    assert not set(JOB["env_vars"]) & set(launch.environment(run))
    for name in ("job.yaml", "rayjob.yaml", "Containerfile"):
        assert not re.search(r"hf_[A-Za-z0-9]{20,}|dapi[0-9a-f]{20,}|AKIA[0-9A-Z]{12,}", (FOLDER / name).read_text())
    containers = [group["template"]["spec"]["containers"][0] for group in groups()]
    tokens = [variable for container in containers for variable in container["env"] if "TOKEN" in variable["name"]]
    assert len(tokens) == 2 and all("secretKeyRef" in variable["valueFrom"] for variable in tokens)


def test_the_nodes_have_the_gpus_that_the_training_asks_for_and_share_the_storage():
    (asked,) = {config.template(typed(given(job)["parameter"])["train_config"])["ray_num_workers"]
                for job in (JOB["entrypoint"], RAYJOB["spec"]["entrypoint"])}
    limits = RAYJOB["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert int(limits["nvidia.com/gpu"]) == asked == 4
    assert JOB["compute_config"]["worker_nodes"][0]["instance_type"] == "g6e.12xlarge"  # which has four
    for group in groups():
        mounts = {mount["mountPath"]: mount["name"] for mount in group["template"]["spec"]["containers"][0]["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in group["template"]["spec"]["volumes"]}
        assert volumes[mounts["/mnt/shared"]]["persistentVolumeClaim"] == {"claimName": "kto"}


def test_both_run_on_the_image_that_the_containerfile_makes_with_the_ray_that_is_locked():
    images = {group["template"]["spec"]["containers"][0]["image"] for group in groups()} | {JOB["image_uri"]}
    locked = re.search(r"^ray==(.*)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE).group(1)
    assert len(images) == 1 and images.pop().rpartition("/")[2] == re.search(r"-t REGISTRY/(\S+)", CONTAINER).group(1)
    assert f":{locked}-py311-" in re.search(r"^ARG BASE=(.*)$", CONTAINER, re.MULTILINE).group(1)
    assert RAYJOB["spec"]["rayClusterSpec"]["rayVersion"] == locked


def test_the_current_image_that_is_named_has_the_python_and_the_ray_of_its_lock():
    ray, python = re.search(r"BASE=anyscale/ray-llm:([\d.]+)-py(\d+)-cu130 --build-arg", CONTAINER).groups()
    assert f"ray=={ray}" in (ROOT / "locks" / "image.lock").read_text().splitlines() and python == "312"
    assert f'`rayVersion: "{ray}"`' in CONTAINER and ray in (FOLDER / "rayjob.yaml").read_text()


def test_the_containerfile_copies_what_there_is_and_all_that_a_run_needs():
    copied = [name for line in re.findall(r"^COPY --chown=ray (.*) \S+$", CONTAINER, re.MULTILINE) for name in line.split()]
    assert all((ROOT / name).exists() for name in copied)
    assert {"helpers", "feedback", "kto_accelerator", "kto", "serving", "locks", "notebooks", "train-configs", "dataset-configs", "tools", "requirements.txt", "Makefile"} <= set(copied)
    assert 'RUN make install-cluster PYTHON=python LOSE="${LOSE}"' in CONTAINER
    assert not {"helpers", "kto", "serving", "notebooks", "train-configs", "dataset-configs", "requirements.txt"} & set(JOB["excludes"])


def groups(manifest: dict = RAYJOB) -> list[dict]:
    cluster = manifest["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
