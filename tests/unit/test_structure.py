"""The shape of the packages: flat, without circles, mapped in CONTRIBUTING. (test_project has which may import which.)"""

import ast
import re
import subprocess
import sys
from functools import cache

import pytest

from helpers.profiles import ROOT

PACKAGES = ("helpers", "feedback", "kto", "kto_accelerator", "serving")

def sources(package: str):
    return sorted((ROOT / package).rglob("*.py"))


@cache
def imports(path) -> list[str]:
    """Dotted names that a module imports, relative imports resolved, also those inside functions."""
    package = path.relative_to(ROOT).with_suffix("").parts
    package = package[:-1]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            found += [f"{module}.{alias.name}" for alias in node.names]
    return found


def test_only_the_launched_process_and_the_check_before_it_know_the_accelerator():
    users = {path.stem for path in sources("helpers") if any(name.startswith("kto_accelerator") for name in imports(path))}
    assert users <= {"trainer", "config"}


def test_no_module_of_helpers_imports_in_a_circle():
    modules = {path.stem: path for path in sources("helpers")}
    arrows = {}
    for name, path in modules.items():  # at import time only: what a function imports later closes no circle
        top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom) and node.level == 1]
        arrows[name] = {part for node in top for part in ([node.module] if node.module else [alias.name for alias in node.names])}

    def reaches(start, seen):
        for other in arrows.get(start, ()):
            if other not in seen:
                seen.add(other)
                reaches(other, seen)
        return seen

    assert [name for name in arrows if name in reaches(name, set())] == []


def test_helpers_is_flat_and_no_file_of_it_is_long():
    files = sources("helpers")
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert {name: count for name, count in lines.items() if count > 250} == {}
    assert all(path.parent == ROOT / "helpers" for path in files)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_has_logic_in_its_init(package):
    """A docstring, a version, imports and names: nothing that runs. (The accelerator's one public call is defined there.)"""
    body = ast.parse((ROOT / package / "__init__.py").read_text()).body
    allowed = (ast.Expr, ast.Assign, ast.ImportFrom, ast.Import)
    assert all(isinstance(node, allowed) for node in body), [type(node).__name__ for node in body]


def test_importing_helpers_imports_nothing_else():
    code = "import sys; before = set(sys.modules); import helpers; print(*set(sys.modules) - before)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["helpers"]


def test_the_map_in_contributing_names_every_module_and_no_other():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for package in PACKAGES:
        there = {path.stem for path in sources(package)} - {"__init__", "__main__"}
        section = text.split(f"### `{package}/`")[1].split("\n### ")[0].split("\n## ")[0]
        named = {word for line in section.splitlines() if line.startswith("| `") for word in re.findall(r"`(\w+)`", line.split("|")[1])}
        assert named == there, f"{package}: missing {sorted(there - named)}, not there {sorted(named - there)}"
