"""The project's own promises: notebooks, README and the map of the rooms say what is there."""

import json
import re

import pytest

from helpers.profiles import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("0*.ipynb"))


def cells(path, kind):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def outputs(path) -> str:
    return json.dumps([cell["outputs"] for cell in cells(path, "code")])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_come_from_one_run_from_top_to_bottom(path):
    counts = [cell["execution_count"] for cell in cells(path, "code")]
    assert counts == list(range(1, len(counts) + 1))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_hold_no_absolute_path_token_warning_or_error(path):
    text = re.sub(r'"image/png": "[^"]*"', "", outputs(path))
    for what in (
        r"/(?:root|home|work|tmp|mnt/data)/[\w.-]+",
        r"hf_[A-Za-z0-9]{20,}",
        r"Warning",
        r"Traceback",
        r'"output_type": "error"',
    ):
        assert not re.search(what, text), what


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_the_skeleton(path):
    text = "\n".join("".join(cell["source"]) for cell in cells(path, "markdown"))
    assert (
        text.startswith("# ")
        and "| you need | you get | takes |" in text.lower().replace("| you need |  |", "")
        or "You need" in text
    )
    assert (
        "If it fails" in text
        and "| symptom | cause | remedy |" in text
        and "What you see" in text.replace("what you see", "What you see")
    )
    tagged = [cell for cell in cells(path, "code") if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1
    assert all(len("".join(cell["source"]).splitlines()) <= 25 for cell in cells(path, "code"))


def test_every_relative_link_leads_somewhere():
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *NOTEBOOKS]:
        text = (
            path.read_text()
            if path.suffix == ".md"
            else "\n".join("".join(c["source"]) for c in cells(path, "markdown"))
        )
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (path.parent / link).exists(), f"{path.name}: {link}"


def test_the_map_of_the_rooms_names_every_module_and_no_other():
    table = "\n".join(line for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines() if line.startswith("|"))
    named = set(re.findall(r"`(\w+)`", "\n".join("|".join(line.split("|")[1:3]) for line in table.splitlines())))
    files = [path.relative_to(ROOT / "helpers") for path in (ROOT / "helpers").rglob("*.py")]
    there = {path.parent.name if path.stem == "__init__" else path.stem for path in files} - {"", "__main__"}
    assert named == there


def test_the_sanitize_rules_are_each_used():
    text = "".join(outputs(path) for path in NOTEBOOKS)
    rules = re.findall(r"^regex: (.*)$", (ROOT / "tests" / "nbval_sanitize.cfg").read_text(), re.MULTILINE)
    assert rules and all(re.search(rule, text) for rule in rules)


def test_the_readme_has_no_figure_left_open():
    assert "FIGURE_" not in (ROOT / "README.md").read_text()
