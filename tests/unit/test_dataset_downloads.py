"""Feedback from elsewhere: a local server that answers well, badly, and not to the end."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from helpers import dataset
from helpers.dataset import downloads, sources
from helpers.errors import KitError

ROWS = [{"prompt": f"Why {i}?", "completion": "Because. " * 50, "label": i % 3 > 0} for i in range(2000)]
CONTENT = "\n".join(json.dumps(row) for row in ROWS).encode()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT. `cuts`: how many answers break off midway; `ranges`: whether it can go on; `tag`: the ETag."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.cuts, self.ranges, self.tag, self.status, self.asked = 0, True, '"one"', 200, []
        self.content = CONTENT
        self.address = f"http://127.0.0.1:{self.server_port}/feedback.jsonl"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, asked = self.server, self.headers.get("Range", "")
        server.asked.append(asked)
        if server.status != 200:
            return self.send_error(server.status)
        start = 0
        if asked and server.ranges and self.headers.get("If-Range") == server.tag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        body = server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        if server.tag:
            self.send_header("ETag", server.tag)
        self.end_headers()
        if server.cuts:
            server.cuts -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_an_address_is_downloaded_once_and_read_like_a_file(server, tmp_path):
    for _ in range(2):
        checked = dataset.check(sources.find(server.address, tmp_path))
        assert checked.ledger.rows_out == len(ROWS)
        assert checked.sha256 == SHA256
    assert len(server.asked) == 1
    assert files_in(tmp_path) == ["feedback.jsonl"]


def test_a_download_that_breaks_off_goes_on_where_it_stopped(server, tmp_path):
    server.cuts = 2
    (file,) = downloads.fetch(server.address, tmp_path, SHA256, len(CONTENT))
    assert file.read_bytes() == CONTENT
    first, *later = server.asked
    starts = [int(asked.removeprefix("bytes=").rstrip("-")) for asked in later]
    assert first == ""
    assert 0.4 * len(CONTENT) < starts[0] < 0.6 * len(CONTENT) < starts[1] < 0.8 * len(CONTENT)


def test_where_the_server_cannot_go_on_the_download_starts_over(server, tmp_path):
    server.cuts, server.ranges = 1, False
    (file,) = downloads.fetch(server.address, tmp_path, SHA256)
    assert file.read_bytes() == CONTENT


def test_without_a_mark_of_the_files_version_the_download_starts_over(server, tmp_path):
    server.cuts, server.tag = 1, ""
    (file,) = downloads.fetch(server.address, tmp_path, SHA256)
    assert file.read_bytes() == CONTENT
    assert server.asked == ["", ""]


def test_what_keeps_breaking_off_leaves_no_file_and_goes_on_in_the_next_run(server, tmp_path):
    server.cuts = downloads.TRIES
    with pytest.raises(KitError, match="broke off"):
        downloads.fetch(server.address, tmp_path)
    assert "feedback.jsonl" not in files_in(tmp_path)
    (file,) = downloads.fetch(server.address, tmp_path)
    assert file.read_bytes() == CONTENT
    assert server.asked[-1].startswith("bytes=")


def test_a_file_that_changed_between_two_tries_is_fetched_anew(server, tmp_path):
    server.cuts = downloads.TRIES
    with pytest.raises(KitError):
        downloads.fetch(server.address, tmp_path)
    server.content, server.tag = CONTENT.replace(b"Why", b"How"), '"two"'
    (file,) = downloads.fetch(server.address, tmp_path)
    assert file.read_bytes() == server.content


def test_an_address_that_answers_404_is_an_error_at_once(server, tmp_path):
    server.status = 404
    with pytest.raises(KitError, match="answers 404"):
        sources.find(server.address, tmp_path)
    assert len(server.asked) == 1


def test_a_server_in_trouble_is_asked_again(server, tmp_path):
    server.status = 503
    with pytest.raises(KitError, match="503"):
        sources.find(server.address, tmp_path)
    assert len(server.asked) == downloads.TRIES


def test_a_wrong_sha256_leaves_no_file_and_shows_both(server, tmp_path):
    with pytest.raises(KitError, match=f"sha256 {SHA256}[\\s\\S]*sha256 0000"):
        downloads.fetch(server.address, tmp_path, "0" * 64)
    assert files_in(tmp_path) in ([], [".feedback.jsonl.etag"])


def test_no_server_at_all_is_an_error_that_says_so(tmp_path):
    with pytest.raises(KitError, match="broke off"):
        sources.find("http://127.0.0.1:9/feedback.jsonl", tmp_path)


def test_an_address_without_a_known_ending_is_an_error(tmp_path):
    with pytest.raises(KitError, match="no file of a kind"):
        sources.find("http://127.0.0.1:9/feedback", tmp_path)
    with pytest.raises(KitError, match="fsspec knows"):
        sources.find("carrier-pigeon://feedback.jsonl", tmp_path)


def test_a_full_disk_ends_a_download_with_what_to_do(server, tmp_path, monkeypatch):
    target = downloads._target(server.address, "/feedback.jsonl", tmp_path)
    target.parent.mkdir()
    (target.parent / ".feedback.jsonl.part").symlink_to("/dev/full")
    with pytest.raises(KitError, match="No space left on device"):
        sources.find(server.address, tmp_path)
    assert files_in(tmp_path) in ([], [".feedback.jsonl.etag"])


def test_the_named_source_of_the_reference_has_its_address_size_and_sha256():
    entry = sources.named()["kto_en_demo"]
    assert entry["url"].endswith("/sharegpt/kto_en_demo.json")
    assert (entry["bytes"], entry["sha256"][:8]) == (913_519, "9891687d")
    assert entry["tags"]["user_tag"] == "user"


def test_a_named_source_is_downloaded_and_checked(server, tmp_path, monkeypatch):
    entry = {"file_name": "far.jsonl", "url": server.address, "sha256": SHA256, "bytes": len(CONTENT)}
    monkeypatch.setattr(sources, "named", lambda: {"far": entry})
    source = sources.find("far", tmp_path)
    assert (source.name, source.files[0].name) == ("far", "feedback.jsonl")


def test_a_store_is_read_through_fsspec_file_folder_and_glob(tmp_path):
    import fsspec

    store = fsspec.filesystem("memory")
    for name in ("a.jsonl", "b.jsonl", "notes.txt"):
        store.pipe(f"/bucket/feedback/{name}", CONTENT)
    for address, count in (("memory://bucket/feedback/a.jsonl", 1), ("memory://bucket/feedback", 2),
                           ("memory://bucket/*/*.jsonl", 2)):
        source = sources.find(address, tmp_path)
        assert len(source.files) == count
        assert all(file.read_bytes() == CONTENT for file in source.files)
    with pytest.raises(KitError, match="there is no data"):
        sources.find("memory://bucket/nothing", tmp_path)


def test_s3_and_gs_are_read_by_pyarrow_where_s3fs_and_gcsfs_are_missing():
    filesystem, path = downloads._filesystem("gs://anonymous@bucket/feedback.jsonl")
    assert path == "bucket/feedback.jsonl"
    assert "gc" in str(getattr(filesystem, "fs", filesystem)).lower() or filesystem.protocol


def test_a_hub_dataset_becomes_a_parquet_file(tmp_path, monkeypatch):
    import datasets

    asked = []

    def load_dataset(*arguments, **options):
        asked.append((*arguments, options["split"]))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    checked = dataset.check(sources.find("org/thumbs:english@train_prefs", tmp_path))
    assert asked == [("org/thumbs", "english", "train_prefs")]
    assert checked.ledger.rows_out == len(ROWS)
    assert checked.source.name == "thumbs_english_train_prefs"


def test_a_hub_dataset_that_is_not_there_is_an_error(tmp_path, monkeypatch):
    import datasets

    def load_dataset(*_, **__):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'org/none' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(KitError, match="doesn't exist on the Hub"):
        sources.find("org/none", tmp_path)
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.fixture
def bucket(s3):
    s3.create_dir("thumbs")
    yield s3
    s3.delete_dir("thumbs")


def test_feedback_in_s3_is_read_as_file_folder_and_glob(bucket, tmp_path):
    for name in ("a.jsonl", "b.jsonl", "notes.txt"):
        with bucket.open_output_stream(f"thumbs/2026/{name}") as file:
            file.write(CONTENT)
    for address, count in (("s3://thumbs/2026/a.jsonl", 1), ("s3://thumbs/2026", 2), ("s3://thumbs/*/*.jsonl", 2)):
        source = sources.find(address, tmp_path)
        assert [file.read_bytes() for file in source.files] == [CONTENT] * count
    with pytest.raises(KitError, match="there is no data"):
        sources.find("s3://thumbs/2027", tmp_path)
