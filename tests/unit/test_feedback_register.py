"""Held out by prompt, shuffled so that neighbours differ, written whole or not at all, registered beside others."""

import json
import multiprocessing
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feedback import check, find, register
from helpers import files
from helpers.errors import KitError


def read_registered(folder, name):
    return [json.loads(line) for line in files.data_file(folder, name).read_text().splitlines()]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    return check.check(find.find("short_answers", tmp_path_factory.mktemp("downloads")))


def made_up(prompts, labels):
    return SimpleNamespace(prompts=np.array(prompts, dtype=np.uint64), labels=np.array(labels, dtype=bool))


def test_a_fifth_of_the_prompts_is_held_out_and_none_is_on_both_sides(shipped):
    held = register.split(shipped, 0.2)
    inside, outside = set(shipped.prompts[held].tolist()), set(shipped.prompts[~held].tolist())
    assert not inside & outside
    assert len(inside) == round(0.2 * len(inside | outside))


def test_both_sides_have_both_labels_in_about_the_same_shares(shipped):
    held = register.split(shipped, 0.2)
    assert abs(shipped.labels[held].mean() - shipped.labels[~held].mean()) < 0.05


def test_the_split_is_the_seeds_and_nothing_elses(shipped):
    assert np.array_equal(register.split(shipped, 0.2, 1), register.split(shipped, 0.2, 1))
    assert not np.array_equal(register.split(shipped, 0.2, 1), register.split(shipped, 0.2, 2))


@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1), st.floats(0.01, 0.99), st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_a_split_has_both_labels_on_both_sides_or_is_refused(rows, share, seed):
    checked = made_up(*zip(*rows, strict=True))
    try:
        held = register.split(checked, share, seed)
    except KitError:
        return
    assert not set(checked.prompts[held].tolist()) & set(checked.prompts[~held].tolist())
    assert set(checked.labels[held].tolist()) == set(checked.labels[~held].tolist()) == {True, False}


def test_nothing_can_be_held_out_and_a_share_of_one_is_refused(shipped):
    assert not register.split(shipped, 0).any()
    with pytest.raises(KitError, match="heldout is 1"):
        register.split(shipped, 1)


@pytest.mark.parametrize("share", [0, 0.2])
def test_where_an_earlier_round_holds_out_all_prompts_nothing_is_left_to_train_on_and_that_is_said(shipped, share):
    with pytest.raises(KitError, match="352 of 352 rows have prompts that an earlier round held out") as error:
        register.split(shipped, share, again=shipped.prompts)
    assert "kto data sample" in str(error.value)


def test_pairs_are_shuffled_so_that_neighbours_share_no_prompt():
    prompts = np.repeat(np.arange(5000, dtype=np.uint64), 2)
    order = register.shuffled(prompts)
    assert sorted(order) == list(range(10_000))
    assert len(register.clashes(prompts)) >= 5000
    assert len(register.clashes(prompts[order])) == 0


def test_the_first_row_of_a_batch_follows_its_last_as_llama_factory_rotates():
    prompts = np.arange(2500, dtype=np.uint64)
    prompts[1999] = prompts[1000]
    prompts[2499] = prompts[2000]
    assert register.clashes(prompts).tolist() == [1000, 2000]


def test_where_neighbours_cannot_differ_the_order_is_still_one(shipped):
    assert sorted(register.shuffled(np.zeros(10, dtype=np.uint64))) == list(range(10))


def test_what_is_registered_is_what_was_checked(shipped, tmp_path):
    facts = register.register(shipped, register.split(shipped), tmp_path)
    train, held = read_registered(tmp_path, facts["name"]), read_registered(tmp_path, facts["heldout_name"])
    assert (len(train), len(held)) == (facts["rows"], facts["heldout_rows"])
    assert sum(row["label"] for row in train) == facts["accepted"]
    assert facts["rows"] + facts["heldout_rows"] == facts["rows_in"] - sum(facts["refused"].values())
    everything = shipped.rows(range(len(shipped.labels)))
    assert sorted(map(json.dumps, train + held)) == sorted(map(json.dumps, everything))


def test_another_split_gets_another_name_and_the_same_one_the_same(shipped, tmp_path):
    names = [register.register(shipped, register.split(shipped, 0.2, seed), tmp_path, seed)["name"] for seed in (1, 2, 1)]
    assert names[0] == names[2] != names[1]
    assert set(files.registry(tmp_path)) == {name + suffix for name in names for suffix in ("", "_heldout")}


def test_the_registry_keeps_other_entries_as_they_are(tmp_path):
    other = {"theirs": {"file_name": "theirs.json", "anything": {"nested": [1, "é"]}}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(other))
    register.update(tmp_path, {"ours": register.ENTRY})
    assert files.registry(tmp_path) == other | {"ours": register.ENTRY}


def test_a_broken_registry_is_left_alone_and_said_to_be_broken(tmp_path):
    (tmp_path / "dataset_info.json").write_text('{"theirs": ')
    with pytest.raises(KitError, match="is broken"):
        register.update(tmp_path, {"ours": register.ENTRY})
    assert (tmp_path / "dataset_info.json").read_text() == '{"theirs": '


def _register_many(folder, mark):
    for number in range(20):
        register.update(folder, {f"{mark}{number}": register.ENTRY})


def test_two_that_register_at_once_both_stand_in_the_registry(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_register_many, args=(tmp_path, mark)) for mark in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len(files.registry(tmp_path)) == 40


def test_a_name_that_is_not_registered_lists_those_that_are(tmp_path):
    register.update(tmp_path, {"mine": register.ENTRY})
    with pytest.raises(KitError, match="one of mine"):
        read_registered(tmp_path, "yours")


def test_a_full_disk_leaves_no_half_dataset_and_the_registry_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(register, "open", lambda *_: open("/dev/full", "wb", buffering=0), raising=False)
    with pytest.raises(KitError, match="No space left on device"):
        register.write(tmp_path, "data", [("", [b'{"label": true}\n'])])
    assert list(tmp_path.iterdir()) == []


def test_the_real_data_of_the_reference_are_read_whole(tmp_path):
    from helpers.profiles import ROOT

    places = [folder / "shared" / "data" / "kto_en_demo.json" for folder in list(ROOT.parents)[:2]]
    data = next((place for place in places if place.exists()), None)
    if data is None:
        pytest.skip("the reference's data are not on this machine: 300 rows are not compared byte for byte")
    facts = check.prepare(str(data), tmp_path)
    assert facts["rows"] + facts["heldout_rows"] == 300
    assert facts["accepted"] + facts["heldout_accepted"] == 150
    assert facts["sha256"] == json.loads(find.NAMED.read_text())["kto_en_demo"]["sha256"]
    assert facts["name"] == "kto_en_demo_7f302655"
    written = [files.sha256(tmp_path / f"{facts[name]}.jsonl") for name in ("name", "heldout_name")]
    assert written == ["9d5c0f3301b3316252753649a747aa0fcba7ba769e7ac7d01e16c30c5bbeb28e",
                       "a578985c30a06662f6f351ffbff27d0ad719d803a60b716a6f84e3393bd8f033"]


def test_the_dataset_that_comes_along_is_written_byte_for_byte_as_ever(tmp_path):
    facts = check.prepare("short_answers", tmp_path)
    written = [files.sha256(tmp_path / f"{facts[name]}.jsonl") for name in ("name", "heldout_name")]
    assert facts["name"] == "short_answers_c477f1b1" and written == [
        "1e787a308f7e602c8ab452f1bb822f15c31f4081cab1007bfd55f4f7bd1621b9",
        "5dcb32da9661cfe6f67db1ba4ce14dc0bf6a0d8b7683ed312530ca85bf71258a"]


def test_everything_at_once_does_what_the_steps_do(shipped, tmp_path):
    at_once = check.prepare("short_answers", tmp_path, seed=7)
    assert at_once == register.register(shipped, register.split(shipped, seed=7), tmp_path, 7)
