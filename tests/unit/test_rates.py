"""The estimate of a training's time against every benchmark of the project, and what the live view makes of it."""

import dataclasses
import json

import pytest
from test_doctor_memory import LLAMA3_8B

from helpers import config, live, logs, models, profiles, rates
from helpers.logs import Event
from helpers.profiles import ROOT
from kto import pipeline

RESULTS = ROOT / "benchmarks" / "results"
TOKENS = 515.3  # of the reference's rows, the benchmarks' data
SHARE = 0.30
"""How far the estimate may be off, as helpers/rates.py says. The rates are those of today's trainer: older rows are slower."""
CASES = {  # file, case -> template, overrides, accelerated
    ("gpu_kto", "80 GB, accelerated"): ("kto_lora_80gb.yaml", {}, True),
    ("gpu_kto", "batch 8"): ("kto_lora.yaml", {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}, False),
    ("gpu_kto", "24 GB, accelerated"): ("kto_qlora_24gb.yaml", {}, True),
    ("gpu_kto_h200", "80 GB, accelerated"): ("kto_lora_80gb.yaml", {}, True),
    ("gpu_kto_h200", "two GPUs, accelerated"): ("kto_lora_80gb.yaml", {"ray_num_workers": 2}, True),
    ("gpu_kto_h200", "two GPUs, rows dealt out blindly"): ("kto_lora_80gb.yaml", {"ray_num_workers": 2}, True),
    ("gpu_kto_h200", "48 GB, accelerated"): ("kto_lora_48gb.yaml", {}, True),
    ("gpu_kto_h200", "reference configuration, accelerated"): ("kto_lora.yaml", {}, True),
    ("gpu_kto_h200", "reference configuration"): ("kto_lora.yaml", {}, False),
    ("gpu_fp8", "bf16, seed 42"): ("kto_lora_80gb.yaml", {}, True),
    ("gpu_fp8", "bf16, seed 43"): ("kto_lora_80gb.yaml", {}, True),
    ("gpu_fp8", "fp8, seed 42"): ("kto_lora_80gb.yaml", {"fp8": True}, True),
    ("gpu_fp8", "fp8, seed 43"): ("kto_lora_80gb.yaml", {"fp8": True}, True),
}
NOT_OURS = {("gpu_kto", "TRL, batch 8")}
FULL = {("gpu_kto_full_h200", "full parameters, ZeRO-3"), ("gpu_kto_full_h200", "full parameters, ZeRO-3, without Liger")}


def asked(template: str, overrides: dict | None = None) -> dict:
    one = {"ray_num_workers": 1} | (overrides or {})
    return config.template(template) | one


@pytest.mark.parametrize(("file", "case"), CASES)
def test_the_estimate_is_within_its_share_of_every_measured_rate(file, case):
    template, overrides, accelerated = CASES[file, case]
    result = json.loads((RESULTS / f"{file}.json").read_text())
    measured = next(row for row in result["table"] if row["case"] == case)
    settings = asked(template, overrides)
    assert rates.unknown(settings, LLAMA3_8B, TOKENS, accelerated) == ""
    made = rates.estimate(settings, LLAMA3_8B, 300, TOKENS, accelerated, "H200" if "h200" in file else "H100")
    rows = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"] * settings["ray_num_workers"]
    for key, name in (("first", "first epoch"), ("later", "later epochs")):
        if measured[name]:
            assert made[key] == pytest.approx(rows / measured[name], rel=SHARE), name


def test_no_benchmark_row_is_left_out():
    there = {(path.stem, row["case"]) for path in RESULTS.glob("*.json") for row in json.loads(path.read_text()).get("table", [])}
    assert there == CASES.keys() | NOT_OURS | FULL


def test_todays_trainer_is_estimated_within_6_percent():
    now = [run for run in json.loads((RESULTS / "gpu_sharing.json").read_text())["runs"] if run["trainer"] == "now"]
    now += [row for row in json.loads((RESULTS / "gpu_fp8.json").read_text())["table"] if row["case"].startswith("bf16")]
    made = rates.estimate(asked("kto_lora_80gb.yaml"), LLAMA3_8B, 300, TOKENS, True, "H100")
    for run in now:
        assert made["first"] == pytest.approx(8 / run["first epoch"], rel=0.06)
        assert made["later"] == pytest.approx(8 / run["later epochs"], rel=0.06)


def test_four_bits_and_two_gpus_are_estimated_within_20_percent_of_each_round():
    runs = json.loads((RESULTS / "gpu_two_hosts.json").read_text())["runs"]
    for case, settings in (("24 GB, accelerated", asked("kto_qlora_24gb.yaml")),
                           ("two GPUs", asked("kto_lora_80gb.yaml", {"ray_num_workers": 2}))):
        made, found = rates.estimate(settings, LLAMA3_8B, 300, TOKENS, True, "H100"), [run for run in runs if run["case"] == case]
        assert len(found) == 4
        for run in found:
            assert made["first"] == pytest.approx(run["rows a step"] / run["first epoch"], rel=0.2)
            assert made["later"] == pytest.approx(run["rows a step"] / run["later epochs"], rel=0.2)


def test_two_gpus_are_estimated_within_10_percent_of_each_round_of_todays_trainer():
    runs = json.loads((RESULTS / "gpu_two_gpus.json").read_text())["runs"]
    now = [run for run in runs if run["case"] == "two GPUs, averaging.py"]
    made = rates.estimate(asked("kto_lora_80gb.yaml", {"ray_num_workers": 2}), LLAMA3_8B, 300, TOKENS, True, "H100")
    assert len(now) == 3
    for run in now:
        assert made["first"] == pytest.approx(run["rows a step"] / run["first epoch"], rel=0.1)
        assert made["later"] == pytest.approx(run["rows a step"] / run["later epochs"], rel=0.1)


@pytest.mark.parametrize("place", [0, 2])
def test_a_whole_run_takes_its_epochs_together(place):
    """200 steps over 5.3 epochs, from the first step's end to the last one's."""
    run = json.loads((RESULTS / "gpu_fp8.json").read_text())["runs"][place]
    (_, begin), (last, end) = run["steps"][0], run["steps"][-1]
    made = rates.estimate(asked("kto_lora_80gb.yaml", {"max_steps": last}), LLAMA3_8B, 300, TOKENS, True, "H100")
    assert (made["epoch"], made["steps"]) == (38, 200)
    assert 60 * made["minutes"] - made["first"] == pytest.approx(end - begin, rel=0.1)


def test_the_references_own_four_l40s_were_as_fast_as_scaling_says():
    """Its log: 'train_runtime': 158.5156 for 114 steps, LLaMA-Factory's own trainer."""
    made = rates.estimate(config.template("kto_lora.yaml"), LLAMA3_8B, 300, TOKENS, False, "L40S")
    assert made["steps"] == 114 and 60 * made["minutes"] == pytest.approx(158.5, rel=0.15)


def test_time_goes_with_tokens_parameters_and_published_flops():
    settings = asked("kto_lora_80gb.yaml")
    usual = rates.estimate(settings, LLAMA3_8B, 300, 2000, True, "H100")["first"]
    assert rates.estimate(settings, LLAMA3_8B, 300, 4000, True, "H100")["first"] == pytest.approx(2 * usual)
    assert rates.estimate(settings, LLAMA3_8B, 300, 2000, True, "A100")["first"] == pytest.approx(usual * 989 / 312)
    body = models.parameters(LLAMA3_8B)[0]
    larger = LLAMA3_8B | {"num_hidden_layers": 64}
    grown = (2 * body + 128256 * 4096) / (body + 128256 * 4096)
    assert rates.estimate(settings, larger, 300, 2000, True, "H100")["first"] == pytest.approx(grown * usual)
    # A small model on a large GPU does not fly: its kernels have to be launched.
    small = {**LLAMA3_8B, "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3,
             "num_hidden_layers": 30, "vocab_size": 49152}
    assert rates.estimate(settings, small, 300, 66, True, "H100")["first"] == pytest.approx(30 * 0.01)


@pytest.mark.parametrize(("changed", "shape", "tokens", "accelerated", "why"), [
    ({"resources_per_worker": {"CPU": 1}}, LLAMA3_8B, TOKENS, True, "CPUs differ"),
    ({"finetuning_type": "full"}, LLAMA3_8B, TOKENS, False, "only LoRA"),
    ({"deepspeed": {"zero_optimization": {"stage": 3}}}, LLAMA3_8B, TOKENS, False, "DeepSpeed"),
    ({"loss": "apo_zero_unpaired"}, LLAMA3_8B, TOKENS, True, "apo_zero_unpaired was not measured"),
    ({"quantization_bit": 4}, LLAMA3_8B, TOKENS, False, "4 bits"), ({"quantization_bit": 8}, LLAMA3_8B, TOKENS, True, "4 bits"),
    ({}, {}, TOKENS, True, "config.json could not be read"), ({}, LLAMA3_8B | {"num_local_experts": 8}, TOKENS, True, "mixture"),
    ({}, LLAMA3_8B, None, True, "02_data did not note"),
])  # fmt: skip
def test_what_was_not_measured_is_unknown_and_not_guessed(changed, shape, tokens, accelerated, why):
    assert why in rates.unknown(asked("kto_lora.yaml", changed), shape, tokens, accelerated)


@pytest.fixture
def there(run, tmp_path):
    """A run of the profile `ray` as notebooks 1 and 2 leave it, with an 8B model's config.json in a folder."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps(LLAMA3_8B | {"model_type": "llama"}))
    run.note(model={"name": "m", "path": str(tmp_path / "m"), "template": "llama3"}, gpus=[["NVIDIA L40S", 45.0, 4]],
             dataset={"name": "d", "rows": 240, "cutoff": {"cutoff_len": 1024, "mean_tokens": 515.3}})
    return dataclasses.replace(run, profile=profiles.load("ray"))


def test_notebook_3_says_what_the_noted_gpu_will_take_and_that_it_was_not_measured(there):
    made, says = rates.foretell(there, config.resolve(there), True)
    assert made["gpu"] == "L40S" and made["steps"] == 3 * made["epoch"] == 90
    assert says.splitlines() == [
        "on L40S: 1.42 s a step, 0.955 s after the first epoch; 1.7 min in all (0.7 the first epoch, 0.5 each later one); scaled, not measured",
        "loading, evaluations and saves come on top; notebook 4 corrects it after ten steps",
        "1 of 4 GPUs train; ray_num_workers sets more"]
    four = rates.foretell(there, config.resolve(there, ray_num_workers=4), False)[1]
    assert "an epoch)" in four and "GPUs train" not in four


def test_a_pinned_kind_is_estimated_and_without_any_gpu_three_kinds_are(there):
    pinned = config.resolve(there, resources_per_worker={"GPU": 1, "accelerator_type:H100": 0.001})
    made, says = rates.foretell(there, pinned, True)
    assert made["gpu"] == "H100" and "from rates measured on H100" in says
    there.note(gpus=[])
    made, says = rates.foretell(there, config.resolve(there), True)
    assert made is None and [line.split(":")[0] for line in says.splitlines()[1:4]] == ["on L40S", "on A100", "on H100"]


def test_a_gpu_of_an_unknown_name_and_one_without_bf16_have_no_estimate(there):
    for name in ("NVIDIA Z9000", "Tesla T4"):
        there.note(gpus=[[name, 15.0, 1]])
        made, says = rates.foretell(there, config.resolve(there, "kto_lora_80gb.yaml"), True)
        assert made is None and f"no rate is known for {name}" in says


def test_a_hub_model_is_asked_for_its_shape_and_one_that_is_refused_is_unknown(there, monkeypatch):
    answers = {"org/open": (200, json.dumps(LLAMA3_8B)), "org/gated": (401, "")}
    monkeypatch.setattr(models.files, "from_hub", answers.get)
    assert rates.foretell(there, config.resolve(there) | {"model_name_or_path": "org/open"}, True)[0]["gpu"] == "L40S"
    made, says = rates.foretell(there, config.resolve(there) | {"model_name_or_path": "org/gated"}, True)
    assert made is None and "could not be read" in says


class Clock:
    """A training's events, with a time for each."""

    def __init__(self, monkeypatch, estimate=None, total=90):
        self.now, self.total, self.view = 1000.0, total, live.View(total, estimate)
        monkeypatch.setattr(live.time, "monotonic", lambda: self.now)

    def step(self, done: int, seconds: float) -> dict | None:
        self.now += seconds
        self.view.take([Event("progress", {"done": done, "total": self.total, "remaining": None})])
        return self.view.pace.measured

    def phase(self, phase: str, seconds: float = 0.0) -> None:
        self.now += seconds
        self.view.take([Event("phase", {"phase": phase})])


ESTIMATE = {"gpu": "L40S", "first": 1.5, "later": 1.0, "epoch": 30, "steps": 90, "minutes": 1.75}


def test_after_ten_steps_the_line_says_what_was_measured_against_the_estimate(monkeypatch):
    clock = Clock(monkeypatch, ESTIMATE)
    clock.step(0, 0)
    clock.step(1, 60)  # loads the model and compiles
    assert [clock.step(done, 3.0) for done in range(2, 11)] == [None] * 9
    assert clock.step(11, 3.0) == {"seconds": 3.0, "minutes": 3.5, "steps": 90}  # twice as long as estimated
    assert clock.step(12, 99.0) == {"seconds": 3.0, "minutes": 3.5, "steps": 90}
    empty = live.metrics.table([], logging_steps=1)
    assert clock.view.line(empty).endswith("; measured: 3 s a step, 3.5 min in all (estimated 1.8)")


def test_without_an_estimate_the_measured_steps_are_multiplied(monkeypatch):
    clock = Clock(monkeypatch, total=120)
    found = [clock.step(done, 2.0) for done in range(1, 12)]
    assert found[-1] == {"seconds": 2.0, "minutes": 4.0, "steps": 120}
    assert clock.view.line(live.metrics.table([], logging_steps=1)).endswith("; measured: 2 s a step, 4.0 min in all")


def test_a_run_that_notebook_5_extended_is_not_held_against_the_estimate_of_its_first_steps(monkeypatch):
    clock = Clock(monkeypatch, ESTIMATE, total=120)
    found = [clock.step(done, 3.0) for done in range(91, 103)]
    assert found[-1] == {"seconds": 3.0, "minutes": 6.0, "steps": 120}
    assert clock.view.line(live.metrics.table([], logging_steps=1)).endswith("; measured: 3 s a step, 6.0 min in all")


def test_evaluations_saves_restarts_and_skipped_steps_are_no_part_of_a_step(monkeypatch):
    clock = Clock(monkeypatch, ESTIMATE)
    clock.step(0, 0)
    clock.step(41, 30)  # a resume from step 40: the bar jumps
    for done in range(42, 46):
        clock.step(done, 2.0)
    clock.phase("evaluating")
    clock.phase("training", 300.0)
    clock.step(46, 2.0)
    clock.phase("saving")
    clock.step(47, 40.0)
    clock.phase("starting", 100.0)  # a lost worker is replaced: back to the last checkpoint
    clock.step(0, 60.0)
    clock.step(41, 60.0)
    found = [clock.step(done, 2.0) for done in range(42, 48)]
    assert found[:-1] == [None] * 5 and found[-1]["seconds"] == 2.0


def test_of_a_recorded_resume_and_of_evaluations_only_whole_steps_are_measured(monkeypatch):
    """Each event of a recorded log a second after the one before; between the steps of one epoch are few events, around others many."""
    for name in ("evaluated-two-workers.log", "launcher-v1-two-workers.log"):
        clock = Clock(monkeypatch)
        for event in logs.parse_file(ROOT / "tests" / "fixtures" / name):
            clock.now += 1.0
            clock.view.take([event])
        pace = clock.view.pace
        assert pace.steps >= 4 and pace.seconds / pace.steps < 4, name


def test_the_runs_record_keeps_what_was_measured_beside_the_estimate(run, monkeypatch, capsys):
    class Slow:
        def __init__(self):
            self.run = run

        def events(self):
            for done in range(40):
                yield [Event("progress", {"done": done, "total": 90, "remaining": None})]

        def check(self):
            return self

    now = iter(range(0, 10**6, 2))
    monkeypatch.setattr(live.time, "monotonic", lambda: float(next(now)))
    run.log_file.write_text("")
    run.note(estimate=ESTIMATE)
    live.follow(Slow())
    measured, estimate = run.record()["measured"], run.record()["estimate"]
    assert estimate == ESTIMATE and measured["minutes"] == pytest.approx(1.75 * measured["seconds"] / 1.5, rel=0.01)
    assert pipeline.summary(run)["training's pace"] == rates.corrected(measured, estimate)
