"""The project's own promises: notebooks, README and the map of the rooms say what is there."""

import ast
import json
import re
import subprocess
import sys

import pytest

from helpers.profiles import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import hygiene  # noqa: E402

NOTEBOOKS = sorted((ROOT / "notebooks").glob("0*.ipynb"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "kto_accelerator/README.md", *sorted((ROOT / "docs").glob("*.md"))]


def cells(path, kind):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def outputs(path) -> str:
    return json.dumps([cell["outputs"] for cell in cells(path, "code")])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_of_one_run_newer_than_their_code_and_tell_nothing_of_the_machine(path):
    assert hygiene.findings(path) == []


def test_no_file_of_the_project_holds_a_secret():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    assert len(files) > 100
    assert {path.name: found for path in files if (found := hygiene.in_text(path.read_text(errors="ignore")))} == {}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda book: book["cells"][-2]["source"].append("\n1 + 1"), "older than its code"),
        (lambda book: first_code(book).update(execution_count=7), "one run from top to bottom"),
        (lambda book: first_code(book)["outputs"].append({"text": ["/" + "home/me/run"]}), "an absolute path"),
        (lambda book: first_code(book)["outputs"].append({"text": ["FutureWarning: soon"]}), "a warning"),
        (lambda book: first_code(book)["source"].append("# hf_" + "a" * 34), "a Hugging Face token"),
    ],
)
def test_hygiene_finds_what_may_not_be_committed_and_says_what_to_do(tmp_path, change, says):
    book = json.loads(NOTEBOOKS[0].read_text())
    book["cells"] = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    book["metadata"]["kto"] = {"outputs_of": hygiene.code_hash(book)}
    change(book)
    path = tmp_path / "changed.ipynb"
    path.write_text(json.dumps(book))
    done = subprocess.run([sys.executable, ROOT / "tools/hygiene.py", path], capture_output=True, text=True)
    assert done.returncode == 1 and any(says in line and "to do:" in line for line in done.stdout.splitlines())


def first_code(book: dict) -> dict:
    return book["cells"][0]


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


def prose(path) -> str:
    return path.read_text() if path.suffix == ".md" else "\n".join("".join(cell["source"]) for cell in cells(path, "markdown"))


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), flags=re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_relative_link_leads_somewhere_and_to_a_heading_that_is_there():
    for path in [*PAGES, *NOTEBOOKS]:
        for file, _, anchor in (link.partition("#") for link in re.findall(r"\]\(([^):]+)\)", prose(path))):
            target = path.parent / file if file else path
            assert target.exists(), f"{path.name}: {file}"
            assert not anchor or anchor in anchors(prose(target)), f"{path.name}: {file}#{anchor}"


def test_the_sanitize_rules_are_each_used():
    text = "".join(outputs(path) for path in NOTEBOOKS)
    rules = re.findall(r"^regex: (.*)$", (ROOT / "tests" / "nbval_sanitize.cfg").read_text(), re.MULTILINE)
    assert rules and all(re.search(rule, text) for rule in rules)


def test_the_readme_has_no_figure_left_open():
    assert not [page.name for page in PAGES if "FIGURE_" in page.read_text() or "@@" in page.read_text()]


TEXTS = {str(path.relative_to(ROOT)): prose(path) for path in [*PAGES, *NOTEBOOKS]}


def test_the_rates_and_memory_of_each_gpu_config_are_those_of_its_record():
    def measured(file, *names):
        return [json.loads((ROOT / "benchmarks/results" / file).read_text())[name] for name in names]

    rows = {row["case"]: row for file in ("gpu_kto.json", "gpu_kto_h200.json") for row in measured(file, "table")[0]}
    now = [run for run in measured("gpu_sharing.json", "runs")[0] if run["trainer"] == "now"]
    lowest = {name: min(run[name] for run in now) for name in ("first epoch", "later epochs", "peak GiB")}
    four_bits = [run for run in measured("gpu_two_hosts.json", "runs")[0] if run["case"] == "24 GB, accelerated"]
    four_bits = {name: min(run[name] for run in four_bits) for name in lowest}
    table = (ROOT / "docs/gpu.md").read_text().split("\n## ")[1]
    for config, row in (("kto_qlora_24gb", four_bits), ("kto_lora_48gb", rows["48 GB, accelerated"]), ("kto_lora_80gb", lowest)):
        later = f"{row['later epochs']:.1f}" if row["later epochs"] else "–"
        assert f"| {row['first epoch']:.1f} / {later}, {row['peak GiB']:.1f} GiB" in re.search(rf"^.*`{config}.yaml`.*$", table, flags=re.M)[0]


def spans(text: str) -> list[str]:
    """What a text sets in code: spans, and the lines of fenced blocks."""
    blocks = re.findall(r"```(?:bash)?\n(.*?)```", text, flags=re.S)
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S)) + "\n".join(blocks).splitlines()


@pytest.mark.parametrize("name", TEXTS)
def test_every_command_that_is_named_exists_with_its_options_and_parameters(name):
    import typer

    from kto import parameters
    from kto.cli import app

    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    known, root = parameters.known(), typer.main.get_command(app)
    for span in spans(TEXTS[name]):
        if made := re.match(r"(?:\w+=\S+ )*make ([a-z-]+)", span):
            assert made[1] in targets, span
        asked = re.search(r"(?:^|python -m |bin/)kto ((?:[a-z]+ )*[a-z]+)?(.*)", span)
        if not asked:
            continue
        command = root
        for word in (asked[1] or "").split():
            if not hasattr(command, "commands"):
                break
            assert word in command.commands, span
            command = command.commands[word]
        options = {option for param in command.params for option in param.opts + param.secondary_opts}
        assert set(re.findall(r"(?<!\S)--[a-z-]+", asked[2])) <= options | {"--help"}, span
        if command.name in ("run", "sweep"):
            assert set(re.findall(r"-p '?(\w+)=", asked[2])) <= {*known, "name"}, span


@pytest.mark.parametrize("name", TEXTS)
def test_every_file_that_is_named_exists(name):
    folders = "helpers|feedback|kto|kto_accelerator|serving|tests|tools|benchmarks|notebooks|train-configs|dataset-configs|job-configs"
    for path in re.findall(rf"(?<![\w/.>-])((?:{folders})/[\w./-]*\w)", TEXTS[name]):
        assert list(ROOT.glob(path)), path


def minutes(text: str) -> tuple[float, float]:
    """The least and most that `under 1 min`, `about 2 min` or `2.5 min` admits, within a factor of two."""
    word, number = re.search(r"(under|about)? ?(\d+(?:\.\d+)?) min", text).groups()
    return 0 if word == "under" else float(number) / 2, float(number) * (1 if word == "under" else 2)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_minutes_stated_are_within_a_factor_of_two_of_those_of_the_last_run(path):
    book = json.loads(path.read_text())
    row = re.search(r"\| you need \|.*\n.*\n(\|.*\|)", "".join(book["cells"][0]["source"]))[1]
    readme = re.search(rf"^\| \[{path.stem}\].*$", (ROOT / "README.md").read_text(), flags=re.M)[0]
    for text in (row.split("|")[3], readme.split("|")[3]):
        least, most = minutes(text)
        assert least <= book["metadata"]["kto"]["minutes"] <= most, text


def test_pictures_have_words_and_headings_go_down_one_step_at_a_time():
    for name, text in TEXTS.items():
        assert all(words.strip() for words in re.findall(r"!\[(.*?)\]\(", text, flags=re.S)), name
        levels = [len(marks) for marks in re.findall(r"^(#+) ", re.sub(r"```.*?```", "", text, flags=re.S), flags=re.M)]
        assert levels[0] == 1 and all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False)), name


ARROWS = {
    "notebooks": {"helpers", "feedback"},
    "helpers": {"kto_accelerator"},
    "feedback": {"helpers.errors", "helpers.files", "helpers.secrets", "helpers.profiles", "helpers.runs"},
    "kto_accelerator": set(),
    "serving": {"helpers"},
    "kto": {"helpers", "feedback", "serving"},
}


@pytest.mark.parametrize("room", ARROWS)
def test_each_package_imports_only_what_it_may(room):
    found = {}
    for path in sorted((ROOT / room).rglob("*.py")) + sorted((ROOT / room).glob("0*.ipynb")):
        text = path.read_text() if path.suffix == ".py" else "\n".join("".join(c["source"]) for c in cells(path, "code"))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                named = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                named = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in named:
                if name.split(".")[0] in ARROWS and name.split(".")[0] != room:
                    found.setdefault(name, path.name)
    may = tuple(f"{name}." for name in ARROWS[room])
    assert {name: file for name, file in found.items() if not f"{name}.".startswith(may)} == {}
