"""Wheels made by the tests, so that a real pip can install and refuse something within a second."""

import zipfile


def wheel(folder, name: str, version: str, requires: tuple[str, ...] = ()) -> None:
    """A wheel with nothing in it but its name, version and what it requires."""
    info = f"{name}-{version}.dist-info"
    told = "".join(f"Requires-Dist: {line}\n" for line in requires)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{told}")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
