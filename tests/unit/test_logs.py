"""The log parser: real logs in full, and every malformed shape that a log can take."""

import math
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import logs

FIXTURES = Path(__file__).parent.parent / "fixtures"
RECORDED = sorted(FIXTURES.glob("*.log"))
REFERENCE = FIXTURES / "reference.log"


def events(text: bytes | str, piece: int | None = None) -> list:
    parser, found = logs.Parser(), []
    for start in range(0, len(text), piece or max(len(text), 1)):
        found += parser.feed(text[start : start + (piece or len(text))])
    return found + parser.close()


def lasting(found: list) -> list:
    """What may not depend on how the stream was cut: events but progress, and the last progress before rare ones."""
    told, bars = [], {}
    for event in found:
        if event.kind == "progress":
            bars[event.data["task"]] = event.data["done"]
        else:
            told.append((event, bars.get("training") if event.kind not in ("metrics", "phase") else None))
    return told


def kinds(found: list) -> dict:
    return dict(Counter(event.kind for event in found))


def test_every_metrics_line_of_the_reference_is_an_event():
    found = [event for event in logs.parse_file(REFERENCE) if event.kind == "metrics"]
    assert len(found) == REFERENCE.read_text().count("{'loss'") == 22
    assert all(len(event.data) == 12 and event.pid == 4171 for event in found)
    assert found[0].data == {
        "loss": 0.4957, "grad_norm": 3.1498160362243652, "learning_rate": 1.6666666666666667e-06,
        "rewards/chosen": 0.019817462989262173, "logps/chosen": -413.7041015625, "logits/chosen": -23078601.14285714,
        "rewards/rejected": -0.10288289189338684, "logps/rejected": -970.846435546875,
        "logits/rejected": -29555157.333333332, "rewards/margins": 0.12270035488264902, "kl": 0.3308525085449219,
        "epoch": 0.13}


@pytest.mark.parametrize(("name", "metrics", "saved", "steps"), [
    ("reference", 22, [50, 100, 114], 114), ("cpu-two-workers", 6, [4, 6], 6), ("h200-two-workers", 10, [10, 20], 20),
    ("demo-two-workers", 15, [10, 20, 30], 30), ("gpu-lora-stock", 10, [10, 20], 20), ("gpu-full-zero3", 6, [], 30),
])
def test_a_recorded_log_is_read_in_full(name, metrics, saved, steps):
    found = list(logs.parse_file(FIXTURES / f"{name}.log"))
    counted = kinds(found)
    assert counted["metrics"] == metrics and counted["summary"] == 1
    checkpoints = [event.data for event in found if event.kind == "checkpoint"]
    assert [data["step"] for data in checkpoints if data["state"] == "saving"] == saved
    reported = [data["path"][-1] for data in checkpoints if data["state"] == "reported"]
    assert reported == [str(k) for k in range(len(saved))]
    bars = [event.data for event in found if event.kind == "progress" and event.data["task"] == "training"]
    assert (bars[-1]["done"], bars[-1]["total"]) == (steps, steps)
    assert "failure" not in counted and "warning" not in counted
    assert {event.run for event in found} == {0}


def test_phases_come_in_their_order():
    found = logs.parse_file(FIXTURES / "demo-two-workers.log")
    phases = [event.data["phase"] for event in found if event.kind == "phase"]
    assert phases == ["starting", "loading data", "tokenizing", "loading model",
                      *["training", "saving"] * 3, "finished"]


def test_rays_table_and_the_trainers_lines_become_facts():
    facts = {}
    for event in logs.parse_file(FIXTURES / "cpu-two-workers.log"):
        facts.update(event.data if event.kind == "config" else {})
    assert facts["learning_rate"] == 5e-05 and facts["output_dir"] == "/mnt/run/store/out" and facts["bf16"] is False
    assert facts["num_examples"] == 64 and facts["total_steps"] == 6 and facts["world_size"] == 2
    assert facts["trainable_params"] == 2442240 and facts["rank0_pid"] == 3960


@pytest.mark.parametrize(("name", "trainable", "every", "rows"), [
    ("gpu-lora-stock", 20_971_520, 8_051_232_768, 241), ("gpu-qlora-accelerated", 20_971_520, 8_051_232_768, 300),
    ("gpu-full-zero3", 1_235_814_400, 1_235_814_400, 300),
])
def test_a_gpus_log_says_what_is_trained_under_lora_qlora_and_deepspeed(name, trainable, every, rows):
    facts = {}
    for event in logs.parse_file(FIXTURES / f"{name}.log"):
        facts.update(event.data if event.kind == "config" else {})
    assert (facts["trainable_params"], facts["all_params"], facts["num_examples"]) == (trainable, every, rows)
    assert facts["world_size"] == 1


def test_progress_has_its_times_and_is_told_once():
    bars = [event.data for event in logs.parse_file(REFERENCE) if event.kind == "progress"]
    training = [data for data in bars if data["task"] == "training"]
    assert {"task": "training", "done": 10, "total": 114, "elapsed": 16.0, "remaining": 142.0} in training
    assert len({data["done"] for data in training}) == len(training)
    assert "Running tokenizer on dataset (num_proc=16)" in {data["task"] for data in bars}


def test_hours_and_unknown_times_are_read():
    assert events("  1%| | 1/200 [1:02:03<205:00:00, 3723.00s/it]\n")[-1].data == {
        "task": "training", "done": 1, "total": 200, "elapsed": 3723.0, "remaining": 738000.0}
    assert events("  0%| | 0/200 [00:00<?, ?it/s]\n")[-1].data["remaining"] is None


def test_a_bar_that_was_overtaken_is_not_told():
    bars = "".join(f"\r{k:3}%| | {k}/100 [00:{k:02}<00:09, 1s/it]" for k in range(50)) + "\n"
    assert [event.data["done"] for event in events(bars) if event.kind == "progress"] == [49]


def test_colours_carriage_returns_and_prefixes_do_not_matter():
    line = "{'loss': 0.5, 'learning_rate': 1e-05, 'rewards/chosen': -0.25, 'epoch': 0.13}"
    coloured, plain = "\x1b[36m(RayTrainWorker pid=7)\x1b[0m ", "(RayTrainWorker pid=7, ip=10.128.6.27) "
    shapes = [line, f"\r          \r{line}", f"{coloured}{line}", f"{plain}{line}\r", f"[rank0]: {line}\x1b[0m",
              f"{line} [repeated 3x across cluster]", f"  4%|▍ | 5/114 [00:09<02:46,  1.54s/it]{line}",
              f"{coloured}\r   \r\r{line}\r\n"]
    for shape in shapes:
        (event,) = [event for event in events(shape + "\n") if event.kind == "metrics"]
        assert event.data == {"loss": 0.5, "learning_rate": 1e-05, "rewards/chosen": -0.25, "epoch": 0.13}
        assert event.pid == (7 if "pid=7" in shape else None)
        assert event.repeated == (4 if "repeated" in shape else 1)


def test_nan_and_infinite_values_are_numbers():
    (event,) = events("{'loss': nan, 'grad_norm': inf, 'learning_rate': -inf, 'kl': nan, 'epoch': 1.0}\n")
    assert math.isnan(event.data["loss"]) and event.data["grad_norm"] == math.inf
    assert event.data["learning_rate"] == -math.inf and event.data["epoch"] == 1.0


def test_a_line_cut_off_is_no_event_and_harms_no_other():
    whole = "{'loss': 0.5, 'learning_rate': 1e-05, 'epoch': 0.13}"
    found = events(f"{whole[:30]}\n{whole}\n(RayTrainWorker pid=1) {whole[:-1]}\n{whole}{whole}\n{whole[:9]}{whole}\n")
    assert kinds(found) == {"metrics": 4}


def test_two_workers_lines_keep_their_own_process():
    one, two = "(RayTrainWorker pid=1) ", "(RayTrainWorker pid=2) "
    line = "{'loss': 0.5, 'learning_rate': 1e-05, 'epoch': 0.13}\n"
    assert [event.pid for event in events(one + line + two + line + line + one + "\r  \r" + line)] == [1, 2, None, 1]


def test_an_evaluation_is_told_from_a_training_window():
    found = events("***** Running Evaluation *****\n  Num examples = 70\n  Batch size = 8\n"
                   "{'eval_loss': 0.49, 'eval_rewards/chosen': 0.1, 'kl': 0.7, 'epoch': 0.5}\n")
    assert [event.kind for event in found] == ["phase", "config", "config", "eval", "phase"]
    assert found[1].data == {"eval_examples": 70} and found[2].data == {"eval_batch_size": 8}


def test_the_evaluations_bar_is_not_the_trainings():
    text = ("***** Running training *****\n  Total optimization steps = 30\n 33%| | 10/30 [00:09<00:20, 1s/it]\n"
            "***** Running Evaluation *****\n 50%| | 2/4 [00:01<00:01, 1s/it]\n"
            "{'eval_loss': 0.4, 'epoch': 0.5}\n 37%| | 11/30 [00:12<00:19, 1s/it]\n")
    tasks = [event.data["task"] for event in events(text) if event.kind == "progress"]
    assert tasks == ["training", "evaluating", "training"]


def test_several_runs_in_one_file_are_told_apart():
    found = events(b"".join(path.read_bytes() for path in RECORDED))
    ends = [event.run for event in found if event.kind == "summary"]
    assert ends == list(range(len(RECORDED)))
    assert [event.run for event in found] == sorted(event.run for event in found)


def test_an_exception_counts_only_after_a_traceback():
    assert events("ValueError: what the sample of a dataset may say\n") == []
    found = events("(RayTrainWorker pid=1) Traceback (most recent call last):\n(RayTrainWorker pid=1)   File \"x.py\"\n"
                   "(RayTrainWorker pid=1) ValueError: Cannot find valid samples.\n")
    assert found == [logs.Event("failure", {"what": "ValueError", "text": "ValueError: Cannot find valid samples."}, 1)]


@pytest.mark.parametrize(("line", "what"), [
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "out of memory"),
    ("OSError: [Errno 28] No space left on device: '/mnt/run/x'", "disk full"),
    ("A worker died or was killed while executing a task by an unexpected system error. SIGKILL", "killed"),
    ("(autoscaler +1m) Error: No available node types can fulfill resource request", "not enough resources"),
    ("[rank0]: Access to model meta-llama/x is restricted: You are trying to access a gated repo.", "gated model"),
])
def test_fatal_words_are_failures_wherever_they_stand(line, what):
    (event,) = [event for event in events(line + "\n" + line + "\n") if event.kind == "failure"]
    assert event.data["what"] == what


def test_a_warning_is_told_once_and_habitual_ones_not_at_all():
    line = "2026-11-22 23:{}:00,0\tWARNING insufficient.py:1 -- Training has not started in the last 60 seconds.\n"
    quiet = "[2026-11-22 23:21:43,086] [WARNING] [real_accelerator.py:209] Setting accelerator to CPU.\n"
    found = events(line.format(10) + quiet + line.format(11))
    assert kinds(found) == {"warning": 1} and "has not started" in found[0].data["text"]


def test_one_line_by_itself_is_its_event():
    assert logs.parse_line("{'train_runtime': 97.2, 'train_loss': 0.5, 'epoch': 0.38}").kind == "summary"
    assert logs.parse_line(b"\xff\xfe nothing") is None


def test_an_endless_line_does_not_fill_the_memory():
    parser = logs.Parser()
    for _ in range(40):
        assert parser.feed(b"x" * 100_000) == []
    assert len(parser._rest) <= logs.LONGEST
    assert kinds(parser.feed("\n{'loss': 0.5, 'learning_rate': 1e-05, 'epoch': 0.13}\n")) == {"metrics": 1}


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
@pytest.mark.parametrize("piece", [1, 7, 4096])
def test_where_the_stream_is_cut_does_not_matter(path, piece):
    log = path.read_bytes()
    assert lasting(events(log, piece)) == lasting(events(log))


SHARDS = [path.read_bytes() for path in RECORDED]
TOKENS = [
    b"{'", b"{'loss': ", b"'epoch': ", b"'}", b"nan", b"%|", b"| 3/9 [00:01<", b"\r", b"\n", b"\x1b[36m(", b"\x1b[0m ",
    b"RayTrainWorker pid=", b") ", b" >> ", b"Traceback (most recent call last)", b"Error: ", b"[repeated ", b" -- ",
    b"Saving model checkpoint to ", b"checkpoint-", b"  Num examples = ", b"***** Running training *****", b"20",
    b"Training saved a checkpoint", "│ train_loop_config/args/x  ".encode(), b"99999999999999999999", b"[WARNING|",
    b"Started a local Ray instance", b"***** Running Evaluation *****", b"{'eval_loss': ",
]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300) | st.text(max_size=300))
def test_no_line_whatever_raises(text):
    events(text)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(TOKENS) | st.binary(max_size=6), max_size=40))
def test_no_mixture_of_meaningful_pieces_raises(pieces):
    log = b"".join(pieces)
    assert lasting(events(log, 3)) == lasting(events(log))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(SHARDS), st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=5)), max_size=30))
def test_a_real_log_with_damage_anywhere_is_still_read(log, damage):
    for place, junk in damage:
        at = int(place * len(log))
        log = log[:at] + junk + log[at + len(junk) :]
    whole = sum(event.kind == "metrics" for event in events(log))
    assert whole >= log.count(b"{'loss'") - 2 * len(damage)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(["loss", "kl", "grad_norm", "rewards/chosen", "rewards/margins"]),
                       st.floats(allow_nan=True, allow_infinity=True)), st.floats(0, 100))
def test_any_numbers_come_back_exactly(values, epoch):
    line = {"loss": 0.5, **values, "learning_rate": 1e-05, "epoch": round(epoch, 2)}
    (event,) = events(str(line) + "\n")
    assert event.data.keys() == line.keys()
    assert all(repr(event.data[key]) == repr(value) for key, value in line.items())
