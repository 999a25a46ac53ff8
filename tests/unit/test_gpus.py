"""GPUs by name and memory, and the training config that the profiles take for them."""

import contextlib
import dataclasses
import json

import pytest

from helpers import cluster, config, gpus, profiles
from helpers.errors import KitError
from kto import doctor, nodes

GIB = {"H200": 140.4, "H100": 79.6, "A100-80": 80.0, "L40S": 45.0, "A100-40": 40.0, "A10G": 22.5}
NAMES = {"H100": "NVIDIA H100 80GB HBM3", "A100-80": "NVIDIA A100-SXM4-80GB", "L40S": "NVIDIA L40S", "A100-40": "NVIDIA A100-PCIE-40GB",
         "A10G": "NVIDIA A10G", "H200": "NVIDIA H200"}
BY_SIZE = {"H200": "kto_lora_80gb.yaml", "H100": "kto_lora_80gb.yaml", "A100-80": "kto_lora_80gb.yaml", "L40S": "kto_lora_48gb.yaml",
           "A100-40": "kto_lora_48gb.yaml", "A10G": "kto_qlora_24gb.yaml"}


def noted(*kinds: str) -> list[list]:
    """What notebook 1 notes of a cluster with these GPUs."""
    return gpus.counted([{"gpus": [(NAMES[kind], GIB[kind])]} for kind in kinds])


@pytest.fixture
def there(run):
    """A run of the profile `ray`, as notebooks 1 and 2 leave it but for the GPUs."""
    run.note(model={"name": "m", "path": "/models/m", "template": "llama3"}, dataset={"name": "d", "rows": 300})
    return dataclasses.replace(run, profile=profiles.load("ray"))


def test_names_are_known_by_their_longest_kind():
    said = {"NVIDIA A100-SXM4-80GB": "A100", "NVIDIA A10G": "A10G", "NVIDIA A10": "A10", "NVIDIA L40S": "L40S", "NVIDIA L4": "L4",
            "NVIDIA H100 PCIe": "H100 PCIe", "NVIDIA H100 80GB HBM3": "H100", "NVIDIA RTX A6000": "A6000", "A100-80G": "A100-80G",
            "NVIDIA GeForce RTX 4090": "RTX 4090", "NVIDIA GB200": "", "NVIDIA L40": ""}  # fmt: skip
    assert {name: gpus.kind(name) for name in said} == said


def test_gpus_are_counted_by_sort_the_smallest_first():
    answers = [{"gpus": [("NVIDIA H100 80GB HBM3", 79.6)] * 2}, {"gpus": [("NVIDIA L40S", 44.99)]}, {"gpus": []}]
    assert gpus.counted(answers) == [["NVIDIA L40S", 45.0, 1], ["NVIDIA H100 80GB HBM3", 79.6, 2]]
    assert gpus.counted([]) == []


@pytest.mark.parametrize("kind", BY_SIZE)
@pytest.mark.parametrize("profile", ["ray", "anyscale"])
def test_each_gpu_takes_the_config_of_its_size(there, kind, profile):
    there = dataclasses.replace(there, profile=profiles.load(profile))
    there.note(gpus=noted(kind))
    name, why = config.used(there)
    assert name == BY_SIZE[kind] and NAMES[kind] in why and "train_config=" in why
    assert config.resolve(there)["per_device_train_batch_size"] == config.template(name)["per_device_train_batch_size"]


def test_of_mixed_gpus_the_smallest_counts_and_of_a_pinned_kind_that_one(there):
    there.note(gpus=noted("H100", "A10G", "L40S"))
    assert config.used(there)[0] == "kto_qlora_24gb.yaml"
    for pin, name in (("accelerator_type:H100", "kto_lora_80gb.yaml"), ("anyscale/accelerator_shape:4xL40S", "kto_lora_48gb.yaml")):
        pinned = {"resources_per_worker": {"GPU": 1, pin: 0.001}}
        assert config.used(there, overrides=pinned)[0] == name
        own = there.profile.model_copy(update={"overrides": pinned})
        assert config.used(dataclasses.replace(there, profile=own))[0] == name
        assert config.resolve(there, **pinned)["cutoff_len"] == 1024


def test_a_pinned_kind_that_is_not_up_yet_is_known_by_what_is_published(there):
    there.note(gpus=noted("A10G"))
    pinned = {"resources_per_worker": {"GPU": 1, "accelerator_type:A100-80G": 0.001}}
    assert config.used(there, overrides=pinned)[0] == "kto_lora_80gb.yaml"
    unheard = {"resources_per_worker": {"GPU": 1, "accelerator_type:Z9000": 0.001}}
    assert config.used(there, overrides=unheard)[0] == "kto_lora.yaml"
    assert gpus.smallest(noted("A10G"), {"GPU": 1, "node:10.0.0.2": 0.001}) == ("NVIDIA A10G", 22.5)  # no kind is pinned


@pytest.mark.parametrize("record", [{}, {"gpus": []}])  # a run of an earlier version; an autoscaling cluster with no GPU up
def test_where_no_gpu_is_known_the_references_config_is_taken_and_the_reader_is_told_how_to_choose(there, record):
    there.note(**record)
    name, why = config.used(there)
    assert name == "kto_lora.yaml" and "no GPU was found" in why and "train_config=" in why and "kto_lora_80gb.yaml from 70 GiB" in why
    assert config.resolve(there)["ray_num_workers"] == 4


def test_a_given_config_and_a_profile_with_one_file_win_over_the_size(there, tmp_path):
    there.note(gpus=noted("H100"))
    assert config.used(there, "kto_lora.yaml")[0] == "kto_lora.yaml"
    path = tmp_path / "mine.yaml"
    path.write_text("train_config: kto_lora.yaml\nmodel_name_or_path: a/b\ntemplate: llama3\ndataset: short_answers\n")
    own = dataclasses.replace(there, profile=profiles.load(str(path)))
    assert config.used(own) == ("kto_lora.yaml", "the profile's") and config.resolve(own)["ray_num_workers"] == 4


def test_a_profile_of_ones_own_may_choose_by_size_and_says_what_it_takes_without_a_gpu(tmp_path):
    path, rest = tmp_path / "mine.yaml", "model_name_or_path: a/b\ntemplate: llama3\ndataset: short_answers\n"
    path.write_text("train_config: {90: big.yaml, 0: small.yaml, unknown: small.yaml}\n" + rest)
    mine = profiles.load(str(path))
    assert [mine.config_for(("NVIDIA X", gib))[0] for gib in (89.9, 90.0)] == ["small.yaml", "big.yaml"]
    assert mine.config_for(None)[0] == "small.yaml"
    for wrong, said in (("{90: big.yaml}", "unknown: kto_lora.yaml"), ("{large: big.yaml, unknown: x.yaml}", "train_config"), ("[a.yaml]", "train_config")):
        path.write_text(f"train_config: {wrong}\n{rest}")
        with pytest.raises(KitError, match=f"is not a profile(?s:.*){said}"):
            profiles.load(str(path))


def test_every_config_by_size_is_a_template_and_the_reference_stays_the_one_without_a_gpu():
    for name in ("ray", "anyscale"):
        profile = profiles.load(name)
        assert set(profile.train_configs) <= set(config.available()) and profile.config_for(None)[0] == "kto_lora.yaml"


def test_quantised_weights_are_refused_where_a_node_lacks_bitsandbytes_unless_ray_brings_it(there):
    qlora = config.template("kto_qlora_24gb.yaml")
    (found,) = gpus.without_bitsandbytes(qlora, False)
    assert found.status == "FAIL" and "needs bitsandbytes" in found.found and "pip install" in found.remedy
    for settings, has, brought in ((qlora, True, ""), (qlora, None, ""), (config.template("kto_lora.yaml"), False, ""),
                                   (qlora, False, "bitsandbytes==0.48.1\n"), (qlora | {"quantization_method": "hqq"}, False, ""),
                                   (qlora | {"ray_init_kwargs": {"runtime_env": {"pip": ["bitsandbytes"]}}}, False, ""),
                                   (qlora | {"ray_init_kwargs": {"runtime_env": {"image_uri": "mine"}}}, False, "")):  # fmt: skip
        assert gpus.without_bitsandbytes(settings, has, brought) == []
    there.note(gpus=noted("A10G"), bitsandbytes=False)
    with pytest.raises(KitError, match="needs bitsandbytes"):
        config.write(there, config.resolve(there))


def test_a_node_says_which_gpus_it_has_and_a_machine_without_a_driver_has_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus.look()["gpus"] == []
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'NVIDIA L40S, 46068'\necho 'NVIDIA L40S, 46068'\n")
    smi.chmod(0o755)
    assert gpus.counted([gpus.look()]) == [["NVIDIA L40S", 45.0, 2]]


@pytest.mark.parametrize(("kinds", "status", "words"), [
    (["L40S", "L40S"], "OK", "the profile takes kto_lora_48gb.yaml: for the smallest GPU: NVIDIA L40S, 45 GiB"),
    (["H100", "A10G"], "OK", "the profile takes kto_qlora_24gb.yaml: for the smallest GPU: NVIDIA A10G"),
    ([], "WARN", "the profile takes kto_lora.yaml: no GPU was found"),
])  # fmt: skip
def test_the_doctor_names_the_config_that_fits(tmp_path, monkeypatch, kinds, status, words):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    asked = {}
    monkeypatch.setattr(doctor, "on_the_cluster", lambda question, until: asked.update(question) or [])
    doctor.examine("ray", str(tmp_path), {"ray_num_workers": 2})
    assert set(asked["configs"]) == set(profiles.load("ray").train_configs)
    assert {one["ray_num_workers"] for one in asked["configs"].values()} == {2}
    found = answered(monkeypatch, asked, kinds)
    assert [finding.status for finding in found if finding.found.startswith(words)] == [status]
    needs = [finding for finding in found if "needs bitsandbytes" in finding.found]
    assert len(needs) == ("A10G" in kinds)
    doctor.examine("ray", str(tmp_path), {"train_config": "kto_lora.yaml"})
    assert list(asked["configs"]) == ["kto_lora.yaml"]
    assert not [finding for finding in answered(monkeypatch, asked, kinds) if "the profile takes" in finding.found]


def answered(monkeypatch, question: dict, kinds: list[str]):
    """The findings of a cluster with these GPUs, a node each; of one node without, where there are none."""
    @contextlib.contextmanager
    def joined(profile, **kwargs):
        yield None

    def each(ray, look, *given, patience):
        cards = [[(NAMES[kind], GIB[kind])] for kind in kinds] or [[]]
        return [(f"10.0.0.{place}", look(*given) | {"gpus": card, "bitsandbytes": False}, "") for place, card in enumerate(cards)]

    monkeypatch.setattr(cluster, "ray_cluster", joined)
    monkeypatch.setattr(cluster, "nodes", lambda ray: [{"CPU": 48, "GPU": 1}] * len(kinds) or [{"CPU": 8}])
    monkeypatch.setattr(cluster, "to_come", lambda: {})
    monkeypatch.setattr(cluster, "on_each_node", each)
    return nodes.everywhere(json.loads(json.dumps(question)))


@pytest.mark.slow
def test_the_local_cluster_is_not_asked_for_gpus_and_takes_the_profiles_own_config(run):
    resources = cluster.resources(run.profile)
    assert resources["answers"] == [] and config.used(run) == ("kto_lora_local.yaml", "the profile's")

