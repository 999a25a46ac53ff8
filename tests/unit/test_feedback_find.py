"""Feedback from elsewhere: a local server that answers well, badly, and not to the end."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from feedback import check, find
from helpers import profiles
from helpers.errors import KitError

ROWS = [{"prompt": f"Why {i}?", "completion": "Because. " * 50, "label": i % 3 > 0} for i in range(2000)]
CONTENT = "\n".join(json.dumps(row) for row in ROWS).encode()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT. `cuts`: how many answers break off midway."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.cuts, self.status, self.asked = 0, 200, []
        self.address = f"http://127.0.0.1:{self.server_port}/feedback.jsonl"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, body = self.server, CONTENT
        server.asked.append(self.path)
        if server.status != 200:
            return self.send_error(server.status)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
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
        checked = check.check(find.find(server.address, tmp_path))
        assert checked.ledger.rows_out == len(ROWS)
        assert checked.sha256 == SHA256
    assert len(server.asked) == 1
    assert files_in(tmp_path) == ["feedback.jsonl"]


def test_a_download_that_breaks_off_starts_over(server, tmp_path):
    server.cuts = 2
    (file,) = find._fetch(server.address, tmp_path, SHA256)
    assert file.read_bytes() == CONTENT


def test_what_keeps_breaking_off_leaves_no_file_and_is_fetched_in_the_next_run(server, tmp_path):
    server.cuts = find.TRIES
    with pytest.raises(KitError, match="could not be downloaded"):
        find._fetch(server.address, tmp_path)
    assert "feedback.jsonl" not in files_in(tmp_path)
    (file,) = find._fetch(server.address, tmp_path)
    assert file.read_bytes() == CONTENT


def test_an_address_that_answers_404_is_an_error_at_once(server, tmp_path):
    server.status = 404
    with pytest.raises(KitError, match="404"):
        find.find(server.address, tmp_path)
    assert len(server.asked) == 1


def test_a_server_in_trouble_is_asked_again(server, tmp_path):
    server.status = 503
    with pytest.raises(KitError, match="503"):
        find.find(server.address, tmp_path)
    assert len(server.asked) == find.TRIES


def test_a_wrong_sha256_leaves_no_file_and_shows_both(server, tmp_path):
    with pytest.raises(KitError, match=f"sha256 {SHA256}[\\s\\S]*sha256 0000"):
        find._fetch(server.address, tmp_path, "0" * 64)
    assert files_in(tmp_path) == []


def test_no_server_at_all_is_an_error_that_says_so(tmp_path):
    with pytest.raises(KitError, match="could not be downloaded"):
        find.find("http://127.0.0.1:9/feedback.jsonl", tmp_path)


def test_an_address_without_a_known_ending_is_an_error(tmp_path):
    with pytest.raises(KitError, match="there is no data"):
        find.find("http://127.0.0.1:9/feedback", tmp_path)
    with pytest.raises(KitError, match="fsspec knows"):
        find.find("carrier-pigeon://feedback.jsonl", tmp_path)


def test_a_full_disk_ends_a_download_with_what_to_do(server, tmp_path, monkeypatch):
    def full(address, remedy, part):
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")

    monkeypatch.setattr(find, "_http", full)
    with pytest.raises(KitError, match="No space left on device"):
        find.find(server.address, tmp_path)
    assert files_in(tmp_path) == []


def test_the_named_source_of_the_reference_has_its_address_size_and_sha256():
    entry = json.loads(find.NAMED.read_text())["kto_en_demo"]
    assert entry["url"].endswith("/sharegpt/kto_en_demo.json")
    assert (entry["bytes"], entry["sha256"][:8]) == (913_519, "9891687d")
    assert entry["tags"]["user_tag"] == "user"


def test_a_named_source_is_downloaded_and_checked(server, tmp_path, monkeypatch):
    entry = {"file_name": "far.jsonl", "url": server.address, "sha256": SHA256, "bytes": len(CONTENT)}
    monkeypatch.setattr(find, "NAMED", tmp_path / "named.json")
    find.NAMED.write_text(json.dumps({"far": entry}))
    source = find.find("far", tmp_path)
    assert (source.name, source.files[0].name) == ("far", "feedback.jsonl")


def test_a_named_source_without_a_way_there_says_how_to_bring_the_file(tmp_path, monkeypatch):
    entry = {"file_name": "far.jsonl", "url": "http://127.0.0.1:9/far.jsonl", "sha256": SHA256, "bytes": len(CONTENT)}
    monkeypatch.setattr(find, "NAMED", tmp_path / "named.json")
    find.NAMED.write_text(json.dumps({"far": entry}))
    with pytest.raises(KitError, match=r"fetch http://127.0.0.1:9/far.jsonl elsewhere and put it at dataset-configs/far.jsonl"):
        find.find("far", tmp_path / "downloads")
    (tmp_path / "far.jsonl").write_bytes(CONTENT[:-1])
    with pytest.raises(KitError, match="dataset-configs/far.jsonl is not what it should be"):
        find.find("far", tmp_path / "downloads")
    (tmp_path / "far.jsonl").write_bytes(CONTENT)
    assert find.find("far", tmp_path / "downloads").files == (tmp_path / "far.jsonl",)


def test_the_cluster_profiles_train_on_the_reference_s_dataset_and_local_on_the_one_that_ships():
    assert {name: profile["dataset"] for name, profile in profiles.known().items()} == {
        "local": "short_answers", "anyscale": "kto_en_demo", "ray": "kto_en_demo"}


def test_a_store_is_read_through_fsspec_file_folder_and_glob(tmp_path):
    import fsspec

    store = fsspec.filesystem("memory")
    for name in ("a.jsonl", "b.jsonl", "notes.txt"):
        store.pipe(f"/bucket/feedback/{name}", CONTENT)
    for address, count in (("memory://bucket/feedback/a.jsonl", 1), ("memory://bucket/feedback", 2),
                           ("memory://bucket/*/*.jsonl", 2)):
        source = find.find(address, tmp_path)
        assert len(source.files) == count
        assert all(file.read_bytes() == CONTENT for file in source.files)
    with pytest.raises(KitError, match="there is no data"):
        find.find("memory://bucket/nothing", tmp_path)


def test_s3_and_gs_are_read_by_pyarrow_where_s3fs_and_gcsfs_are_missing():
    filesystem, path = find._filesystem("gs://anonymous@bucket/feedback.jsonl")
    assert path == "bucket/feedback.jsonl"
    assert "gc" in str(getattr(filesystem, "fs", filesystem)).lower() or filesystem.protocol


def test_a_hub_dataset_becomes_a_parquet_file(tmp_path, monkeypatch):
    import datasets

    asked = []

    def load_dataset(*arguments, **options):
        asked.append((*arguments, options["split"]))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    checked = check.check(find.find("org/thumbs:english@train_prefs", tmp_path))
    assert asked == [("org/thumbs", "english", "train_prefs")]
    assert checked.ledger.rows_out == len(ROWS)
    assert checked.source.name == "thumbs_english_train_prefs"


def test_a_hub_dataset_that_is_not_there_is_an_error(tmp_path, monkeypatch):
    import datasets

    def load_dataset(*_, **__):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'org/none' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(KitError, match="doesn't exist on the Hub"):
        find.find("org/none", tmp_path)
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
        source = find.find(address, tmp_path)
        assert [file.read_bytes() for file in source.files] == [CONTENT] * count
    with pytest.raises(KitError, match="there is no data"):
        find.find("s3://thumbs/2027", tmp_path)
