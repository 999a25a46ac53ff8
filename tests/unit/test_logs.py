"""The log parser: real logs in full, logs of others, and every malformed shape that a log can take."""

import math
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import logs

FIXTURES = Path(__file__).parent.parent / "fixtures"
RECORDED = sorted(FIXTURES.glob("*.log"))
REFERENCE = FIXTURES / "reference.log"
WINDOW = "{'loss': 0.5, 'grad_norm': 1.5, 'learning_rate': 1e-05, 'rewards/chosen': -0.25, 'epoch': 0.13}"


def events(text: bytes | str, piece: int | None = None) -> list:
    parser, found, text = logs.Parser(), [], text.encode("utf-8", "replace") if isinstance(text, str) else text
    for start in range(0, len(text), piece or max(len(text), 1)):
        found += parser.feed(text[start : start + (piece or len(text))])
    return found + parser.feed(b"\n")


def kinds(found: list) -> dict:
    return dict(Counter(event.kind for event in found))


def facts_of(found) -> dict:
    facts = {}
    for event in found:
        facts.update(event.data if event.kind == "config" else {})
    return facts


def test_every_metrics_line_of_the_reference_is_an_event():
    found = [event for event in logs.parse_file(REFERENCE) if event.kind == "metrics"]
    assert len(found) == REFERENCE.read_text().count("{'loss'") == 22
    assert all(len(event.data) == 12 and event.worker.endswith("4171") for event in found)
    assert found[0].data == {
        "loss": 0.4957, "grad_norm": 3.1498160362243652, "learning_rate": 1.6666666666666667e-06,
        "rewards/chosen": 0.019817462989262173, "logps/chosen": -413.7041015625, "logits/chosen": -23078601.14285714,
        "rewards/rejected": -0.10288289189338684, "logps/rejected": -970.846435546875,
        "logits/rejected": -29555157.333333332, "rewards/margins": 0.12270035488264902, "kl": 0.3308525085449219,
        "epoch": 0.13}


@pytest.mark.parametrize(("name", "metrics", "saved", "steps"), [
    ("reference", 22, [50, 100, 114], 114), ("cpu-two-workers", 6, [4, 6], 6), ("h200-two-workers", 10, [10, 20], 20),
    ("demo-two-workers", 15, [10, 20, 30], 30), ("gpu-lora-stock", 10, [10, 20], 20), ("gpu-full-zero3", 6, [], 30),
    ("ray-train-v2", 4, [2, 4], 4), ("torchrun-two-workers", 4, [2, 4], 4),
])
def test_a_recorded_log_is_read_in_full(name, metrics, saved, steps):
    found = list(logs.parse_file(FIXTURES / f"{name}.log"))
    counted = kinds(found)
    assert counted["metrics"] == metrics and counted["summary"] == 1
    assert [event.data["step"] for event in found if event.kind == "checkpoint"] == saved
    bars = [event.data for event in found if event.kind == "progress"]
    assert (bars[-1]["done"], bars[-1]["total"]) == (steps, steps)
    assert {event.run for event in found} == {0}


def test_phases_come_in_their_order():
    found = logs.parse_file(FIXTURES / "demo-two-workers.log")
    phases = [event.data["phase"] for event in found if event.kind == "phase"]
    assert phases == ["starting", "loading data", "tokenizing", "loading model", *["training", "saving"] * 3, "finished"]


def test_rays_table_and_the_trainers_lines_become_facts():
    facts = facts_of(logs.parse_file(FIXTURES / "cpu-two-workers.log"))
    assert facts["learning_rate"] == 5e-05 and facts["output_dir"] == "/mnt/run/store/out" and facts["bf16"] is False
    assert facts["num_examples"] == 64 and facts["total_steps"] == 6 and facts["world_size"] == 2
    assert facts["trainable_params"] == 2442240 and facts["rank0"].endswith("pid=3960")
    assert facts["written_by"] == "llamafactory"


@pytest.mark.parametrize(("name", "trainable", "every", "rows"), [
    ("gpu-lora-stock", 20_971_520, 8_051_232_768, 241), ("gpu-qlora-accelerated", 20_971_520, 8_051_232_768, 300),
    ("gpu-full-zero3", 1_235_814_400, 1_235_814_400, 300),
])
def test_a_gpus_log_says_what_is_trained_under_lora_qlora_and_deepspeed(name, trainable, every, rows):
    facts = facts_of(logs.parse_file(FIXTURES / f"{name}.log"))
    assert (facts["trainable_params"], facts["all_params"], facts["num_examples"]) == (trainable, every, rows)
    assert facts["world_size"] == 1


def test_what_our_trainer_prints_of_the_config_becomes_facts():
    found = events("(RayTrainWorker pid=1) [kto] logging_steps: 5\n[kto] config learning_rate=5e-06\n"
                   "[kto] gradient_accumulation_steps=2 max_steps=8\n[kto] {\"save_steps\": 4}\n[kto] metrics of all 4 workers\n[kto] a sentence for people\n")
    assert facts_of(found) == {"logging_steps": 5, "gradient_accumulation_steps": 2, "learning_rate": 5e-06, "metrics_of_workers": 4,
                               "max_steps": 8, "save_steps": 4}


def test_progress_has_its_times_and_is_told_once():
    training = [event.data for event in logs.parse_file(REFERENCE) if event.kind == "progress"]
    assert {"done": 10, "total": 114, "remaining": 142.0} in training
    assert len({data["done"] for data in training}) == len(training)


def test_hours_and_unknown_times_are_read():
    assert events("  1%| | 1/200 [1:02:03<205:00:00, 3723.00s/it]\n")[-1].data == {
        "done": 1, "total": 200, "remaining": 738000.0}
    assert events("  0%| | 0/200 [00:00<?, ?it/s]\n")[-1].data["remaining"] is None


def test_colours_carriage_returns_and_prefixes_do_not_matter():
    coloured, plain = "\x1b[36m(RayTrainWorker pid=7)\x1b[0m ", "(RayTrainWorker pid=7, ip=10.128.6.27) "
    shapes = {WINDOW: None, f"\r          \r{WINDOW}": None, f"{coloured}{WINDOW}": "7", f"{plain}{WINDOW}\r": "10.128.6.27:7",
              f"[rank0]: {WINDOW}\x1b[0m": "rank0", f"{WINDOW} [repeated 3x across cluster]": None,
              f"2026-05-02T18:40:11.902Z {plain}{WINDOW}": "10.128.6.27:7",
              f"  4%|▍ | 5/114 [00:09<02:46,  1.54s/it]{WINDOW}": None, f"{coloured}\r   \r\r{WINDOW}\r\n": "7"}
    for shape, worker in shapes.items():
        (event,) = [event for event in events(shape + "\n") if event.kind == "metrics"]
        assert event.data["rewards/chosen"] == -0.25 and len(event.data) == 5
        assert event.worker == worker


def test_nan_and_infinite_values_are_numbers():
    (event,) = events("{'loss': nan, 'grad_norm': inf, 'learning_rate': -inf, 'kl': nan, 'epoch': 1.0}\n")
    assert math.isnan(event.data["loss"]) and event.data["grad_norm"] == math.inf
    assert event.data["learning_rate"] == -math.inf and event.data["epoch"] == 1.0


def test_numbers_that_transformers_5_prints_as_text_are_numbers():
    (event,) = events("{'loss': '0.4899', 'grad_norm': '1.284', 'learning_rate': '4.774e-06', 'kl': 'nan', 'epoch': '0.625'}\n")
    assert event.data["loss"] == 0.4899 and event.data["learning_rate"] == 4.774e-06 and math.isnan(event.data["kl"])


def test_numbers_in_numpys_or_torchs_words_are_numbers():
    (event,) = events("{'loss': np.float64(0.5), 'grad_norm': tensor(1.25, device='cuda:0'), 'kl': tensor(-2e-3), 'epoch': 0.1}\n")
    assert event.data == {"loss": 0.5, "grad_norm": 1.25, "kl": -2e-3, "epoch": 0.1}


def test_a_line_cut_off_is_no_event_and_harms_no_other():
    found = events(f"{WINDOW[:30]}\n{WINDOW}\n(RayTrainWorker pid=1) {WINDOW[:-1]}\n{WINDOW}{WINDOW}\n{WINDOW[:9]}{WINDOW}\n")
    assert kinds(found) == {"metrics": 4}


@pytest.mark.parametrize("width", [40, 80, 120])
def test_lines_that_a_terminal_wrapped_are_joined(tmp_path, width):
    text = (FIXTURES / "logs_of_others" / "control_0_9_3.log").read_text().replace("\r", "\n")
    wrapped = "\n".join(line[at : at + width] for line in text.split("\n") for at in range(0, max(len(line), 1), width))
    for name, content in (("plain", text), ("wrapped", wrapped.replace("\n", "\r\n") if width == 120 else wrapped)):
        (tmp_path / name).write_text(content)
    plain, again = ([event for event in logs.parse_file(tmp_path / name) if event.kind in ("metrics", "config", "summary")]
                    for name in ("plain", "wrapped"))
    assert again == plain and kinds(plain)["metrics"] == 4 and facts_of(plain)["total_train_batch_size"] == 16


def test_a_record_broken_between_words_is_joined_and_what_follows_a_torn_one_is_read(tmp_path):
    broken = WINDOW.replace(", 'rewards", ",\n'rewards").replace(" 'epoch': ", " 'epoch':\n")
    (tmp_path / "train.log").write_text(broken + "\n")
    (event,) = logs.parse_file(tmp_path / "train.log")
    assert event.data == events(WINDOW)[0].data
    started = "2026-11-22 23:10:00,0\tINFO worker.py:1927 -- Started a local Ray instance.\n"
    (tmp_path / "train.log").write_text(WINDOW[:40] + "\n" + started + WINDOW + "\n")
    assert [event.kind for event in logs.parse_file(tmp_path / "train.log")] == ["phase", "metrics"]


def test_rays_report_of_a_window_is_no_second_window():
    report = "Reporting training result 1: TrainingReport(checkpoint=Checkpoint(path=/x), metrics={'loss': 0.5, 'epoch': 0.13, 'step': 2})"
    assert events(f"(RayTrainWorker pid=7) {report}\nResult(metrics={{'loss': 0.5, 'epoch': 0.13}}, path='/x')\n") == []


def test_two_workers_lines_keep_their_own_process():
    one, two = "(RayTrainWorker pid=1) ", "(RayTrainWorker pid=1, ip=10.0.0.2) "
    found = events(one + WINDOW + "\n" + two + WINDOW + "\n" + WINDOW + "\n" + one + "\r  \r" + WINDOW)
    assert [event.worker for event in found] == ["1", "10.0.0.2:1", None, "1"]


def test_an_evaluation_is_told_from_a_training_window():
    found = events("***** Running Evaluation *****\n  Num examples = 70\n  Batch size = 8\n"
                   "{'eval_loss': 0.49, 'eval_rewards/chosen': 0.1, 'kl': 0.7, 'epoch': 0.5}\n{'eval_thumbs_loss': 0.3, 'epoch': 0.5}\n")
    assert [event.kind for event in found] == ["phase", "config", "config", "eval", "phase", "eval"]
    assert found[1].data == {"eval_examples": 70} and found[2].data == {"eval_batch_size": 8}


def test_the_evaluations_bar_is_not_the_trainings():
    text = ("***** Running training *****\n  Total optimization steps = 30\n 33%| | 10/30 [00:09<00:20, 1s/it]\n"
            "***** Running Evaluation *****\n 50%| | 2/4 [00:01<00:01, 1s/it]\n"
            "{'eval_loss': 0.4, 'epoch': 0.5}\n 37%| | 11/30 [00:12<00:19, 1s/it]\n")
    assert [event.data["done"] for event in events(text) if event.kind == "progress"] == [10, 11]


def test_several_launches_in_one_file_are_told_apart():
    found = events(b"".join(path.read_bytes() for path in RECORDED))
    assert [event.run for event in found if event.kind == "summary"] == list(range(len(RECORDED)))
    assert [event.run for event in found] == sorted(event.run for event in found)


def test_two_nodes_whose_workers_share_a_pid_are_one_launch():
    found = list(logs.parse_file(FIXTURES / "logs_of_others" / "same_pid.log"))
    assert {event.run for event in found} == {0}
    assert Counter(event.worker for event in found if event.kind == "metrics") == {"10.42.3.18:429": 6, "10.42.5.7:429": 6}


def test_an_endless_line_does_not_fill_the_memory():
    parser = logs.Parser()
    for _ in range(40):
        assert parser.feed(b"x" * 100_000) == []
    assert len(parser.rest) <= logs.LONGEST + 100_000
    assert kinds(parser.feed(f"\n{WINDOW}\n".encode())) == {"metrics": 1}


def test_a_days_log_is_read_in_seconds():
    text, parser, start = (FIXTURES / "demo-two-workers.log").read_bytes(), logs.Parser(), time.process_time()
    for _ in range(50):
        parser.feed(text)
    assert 50 * len(text) / (time.process_time() - start) > 5e5  # 7 to 14 MB/s on an idle core (benchmarks/log_parser.py); 20 MB: a day's


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
@pytest.mark.parametrize("piece", [7, 4096])
def test_where_the_stream_is_cut_does_not_matter(path, piece):
    log = path.read_bytes()
    assert events(log, piece) == events(log)


SHARDS = [path.read_bytes() for path in RECORDED]
TOKENS = [
    b"{'", b"{'loss': ", b"'epoch': ", b"'}", b"nan", b"%|", b"| 3/9 [00:01<", b"\r", b"\n", b"\x1b[36m(", b"\x1b[0m ",
    b"RayTrainWorker pid=", b") ", b" >> ", b", ip=10.0.0.1", b"[kto] ", b"[repeated ", b" -- ", b"metrics of all 2 workers",
    b"Saving model checkpoint to ", b"checkpoint-", b"  Num examples = ", b"***** Running training *****", b"20",
    "│ train_loop_config/args/x  ".encode(), b"99999999999999999999", b"[rank1]: ", b"pid=3) world_rank=0", b"llamafactory",
    b"Started a local Ray instance", b"***** Running Evaluation *****", b"{'eval_loss': ", b"'loss'", b"}",
]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300) | st.text(max_size=300))
def test_no_line_whatever_raises(text):
    events(text)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(TOKENS) | st.binary(max_size=6), max_size=40))
def test_no_mixture_of_meaningful_pieces_raises(pieces):
    log = b"".join(pieces)
    assert str(events(log, 3)) == str(events(log))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(SHARDS), st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=5)), max_size=30))
def test_a_real_log_with_damage_anywhere_is_still_read(log, damage):
    for place, junk in damage:
        at = int(place * len(log))
        log = log[:at] + junk + log[at + len(junk) :]
    windows = log.count(b"{'loss'") - log.count(b"metrics={'loss'")  # Train V2's reports repeat them
    assert sum(event.kind == "metrics" for event in events(log)) >= windows - 2 * len(damage)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(["loss", "kl", "grad_norm", "rewards/chosen", "rewards/margins"]),
                       st.floats(allow_nan=True, allow_infinity=True)), st.floats(0, 100))
def test_any_numbers_come_back_exactly(values, epoch):
    line = {"loss": 0.5, **values, "learning_rate": 1e-05, "epoch": round(epoch, 2)}
    (event,) = events(str(line) + "\n")
    assert event.data.keys() == line.keys()
    assert all(repr(event.data[key]) == repr(value) for key, value in line.items())
