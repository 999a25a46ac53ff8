"""Checkpoints in a bucket, through a real S3 API on loopback (moto's server), and through pyarrow as for Google's."""

import shutil
from pathlib import Path

import pytest

from helpers import checkpoints, choose, files, keep, runs
from helpers.errors import KitError

FIXTURE = Path(__file__).parents[1] / "fixtures" / "trial"
TRIAL = "TorchTrainer_8f6d0_00000_0_2026-11-23_00-55-21"


@pytest.fixture
def bucket(s3):
    """A bucket with a finished run, and the environment that leads to it."""
    from pyarrow import fs

    s3.create_dir("kto")
    fs.copy_files(str(FIXTURE), "kto/runs/first-run", source_filesystem=fs.LocalFileSystem(), destination_filesystem=s3)
    yield s3
    s3.delete_dir("kto")


def test_a_run_in_s3_reads_as_it_does_on_disk(bucket):
    there, here = checkpoints.find("s3://kto/runs/first-run"), checkpoints.find(FIXTURE)
    assert [item.path for item in there] == [
        f"s3://kto/runs/first-run/{TRIAL}/checkpoint_{index:06d}/checkpoint" for index in range(3)]
    for one, other in zip(there, here, strict=True):
        assert (one.step, one.bytes, one.why, one.workers, one.metrics.keys()) == (
            other.step, other.bytes, other.why, other.workers, other.metrics.keys())
    assert choose.latest(there)[0].step == 30


def test_an_upload_that_stopped_midway_is_incomplete(bucket):
    folder = f"kto/runs/first-run/{TRIAL}/checkpoint_000002/checkpoint"
    with bucket.open_output_stream(f"{folder}/adapter_model.safetensors") as file:
        file.write((FIXTURE / TRIAL / "checkpoint_000002/checkpoint/adapter_model.safetensors").read_bytes()[:300])
    bucket.delete_file(f"kto/runs/first-run/{TRIAL}/checkpoint_000001/checkpoint/trainer_state.json")
    found = {item.path[-1 - len("/checkpoint")]: item.why for item in checkpoints.find("s3://kto/runs/first-run")}
    assert found["2"].startswith("adapter_model.safetensors is cut off")
    assert found["1"].startswith("no trainer_state.json")


def test_a_run_whose_trials_ray_keeps_in_a_bucket_is_found_in_both_places(bucket, tmp_path):
    folder = tmp_path / "first-run"
    shutil.copytree(FIXTURE / TRIAL / "checkpoint_000000" / "checkpoint", folder / "output" / "checkpoint-10")
    (folder / "config.yaml").write_text("ray_storage_filesystem: s3\nray_storage_path: kto/runs\n"
                                        "ray_run_name: first-run\nray_num_workers: 2\n")
    found = checkpoints.find(runs.locate("local", str(tmp_path), "first-run"))
    assert [(item.step, item.layout) for item in found] == [
        (10, "Ray Train"), (10, "output_dir"), (20, "Ray Train"), (30, "Ray Train")]


def test_a_checkpoint_is_fetched_whole_or_without_what_only_a_resume_needs(bucket, tmp_path):
    best, _ = choose.best(checkpoints.find("s3://kto/runs/first-run"))
    fetched = choose.fetch(best, tmp_path / "checkpoint-30")
    assert fetched.path == tmp_path / "checkpoint-30" and checkpoints.find(fetched.path)[0].complete
    assert choose.fetch(fetched, tmp_path / "elsewhere") is fetched
    weights = choose.fetch(best, tmp_path / "weights" / "checkpoint-30", to_resume=False)
    assert checkpoints.find(weights.path)[0].usable and not (weights.path / "optimizer.pt").exists()


def test_what_is_not_kept_is_removed_from_the_bucket_too(bucket, tmp_path):
    (tmp_path / "first-run").mkdir()
    (tmp_path / "first-run" / "config.yaml").write_text(
        "ray_storage_filesystem: s3\nray_storage_path: kto/runs\nray_run_name: first-run\n")
    run = runs.locate("local", str(tmp_path), "first-run")
    verdicts = keep.plan(run, last=1)
    freed = keep.remove(run, [one.checkpoint for one in verdicts if not one.keep])
    assert freed and [item.step for item in checkpoints.find(run)] == [30]


def test_a_bucket_that_is_not_there_is_one_clear_message(bucket):
    with pytest.raises(KitError, match="there is no folder s3://no-such-bucket/runs"):
        checkpoints.find("s3://no-such-bucket/runs")


@pytest.mark.parametrize("scheme", ["gs", "gcs"])
def test_google_storage_is_known_by_both_schemes(scheme):
    from pyarrow import fs

    assert isinstance(files.bucket_filesystem(scheme), fs.GcsFileSystem)


def test_an_address_of_another_kind_is_refused():
    for nothing in ("s3://", "s3:///runs"):
        with pytest.raises(KitError, match=f"there is no folder {nothing}"):
            checkpoints.find(nothing)
    with pytest.raises(KitError, match="there is no folder ftp://somewhere/run"):
        checkpoints.find("ftp://somewhere/run")


def test_no_weights_are_read_beyond_their_header(bucket, monkeypatch):
    from fsspec.implementations.arrow import ArrowFSWrapper

    read, stock = {}, ArrowFSWrapper.open

    class Watched:
        def __init__(self, file, path):
            self.file, self.path = file, path

        def read(self, *size):
            got = self.file.read(*size)
            read.setdefault(self.path, []).append(len(got))
            return got

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

    def watched(self, path, *arguments, **named):
        return Watched(stock(self, path, *arguments, **named), path)

    monkeypatch.setattr(ArrowFSWrapper, "open", watched)
    checkpoints.find("s3://kto/runs/first-run")
    large = b"x" * 5_000_000
    path = f"kto/runs/first-run/{TRIAL}/checkpoint_000000/checkpoint/adapter_model.safetensors"
    with bucket.open_output_stream(path) as file:
        file.write((FIXTURE / TRIAL / "checkpoint_000000/checkpoint/adapter_model.safetensors").read_bytes() + large)
    read.clear()
    assert "too long" in checkpoints.find("s3://kto/runs/first-run")[0].why
    assert read and sum(read[path]) < 100_000
