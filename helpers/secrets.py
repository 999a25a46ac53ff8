"""Read secrets from environment or file, send them to workers in memory, mask them in everything written.

A secret is the value of an environment variable whose name ends like HF_TOKEN or AWS_SECRET_ACCESS_KEY, or the password in an address
(https://user:password@host). They reach a cluster in a setup hook, which Ray keeps in memory; `env_vars` it would write to logs.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote

NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|_KEY|_KEY_ID)$")
IN_ADDRESS = re.compile(r"://[^/@\s:]*:([^/@\s]+)@")
SHORTEST = 8
"""A shorter value is not masked: hiding every `test` or `1` would ruin every text, and is no secret."""
TRAVELLING = ("HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN",
              "WANDB_API_KEY", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")
"""What a training's workers need besides what a job was sent (KTO_SECRETS). MLflow is spoken to by this side alone."""
ISSUED = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{20,}",
    "an AWS key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "an Anyscale or OpenAI key": r"\b(?:aph0_|sk-)[A-Za-z0-9_-]{32,}",
    "a Databricks token": r"\bdapi[0-9a-f]{24,}",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{40,})",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
}
"""Kind of token -> the pattern it always has, whatever variable it is in."""
LITERAL = re.compile("|".join(ISSUED.values()))


def load() -> list[str]:
    """Read NAME from the file that NAME_FILE names, the convention of container images; the variables whose file cannot be read."""
    unread = []
    for variable in [name for name in os.environ if name.endswith("_FILE") and NAME.search(name.removesuffix("_FILE"))]:
        try:
            os.environ.setdefault(variable.removesuffix("_FILE"), Path(os.environ[variable]).read_text().strip())
        except (OSError, UnicodeDecodeError):
            unread.append(variable)
    return unread


def spellings() -> dict[str, str]:
    """Every secret of the environment as it may stand in a text: as it is, inside JSON, inside an address -> `***NAME***`."""
    found = {}
    for name, value in os.environ.items():
        if NAME.search(name):
            found[value] = name
        elif "://" in value:
            found |= {password: name for password in IN_ADDRESS.findall(value)}
    forms = {}
    for value in sorted(found, key=len, reverse=True):  # the longest first, as it may hold a shorter one
        if len(value) >= SHORTEST:
            forms |= dict.fromkeys((value, json.dumps(value)[1:-1], quote(value, safe="")), f"***{found[value]}***")
    return forms


def mask(text: str) -> str:
    """The text with every secret of the environment replaced by its variable's name."""
    for form, shown in spellings().items():
        text = text.replace(form, shown)
    return text


def masked(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The chunks of a byte stream, masked as they come; a secret cut in two by a chunk's end is held back until it is whole."""
    forms, held = [(form.encode(), shown.encode()) for form, shown in spellings().items()], b""
    for chunk in chunks:
        text = held + chunk
        for form, shown in forms:
            text = text.replace(form, shown)
        begun = max((n for form, _ in forms for n in range(1, len(form)) if text.endswith(form[:n])), default=0)
        yield text[: len(text) - begun]
        held = text[len(text) - begun :]
    yield held


def literal(config) -> list[str]:
    """The keys of a config under which a secret is written: nothing secret may stand in a file."""
    found = []
    for key, value in config.items() if isinstance(config, dict) else enumerate(config):
        if isinstance(value, dict | list):
            found += [f"{key}.{inner}" for inner in literal(value)]
        elif isinstance(value, str):
            named = str(key).isupper() and NAME.search(str(key)) and value and not value.startswith(("<", "${"))
            if named or LITERAL.search(value) or mask(value) != value:
                found.append(str(key))
    return found


def refuse(config: dict, says: str) -> None:
    """KitError (`says`: "the config holds") where a secret is written in `config`: it would come to lie in files."""
    from .errors import KitError

    if found := literal(config):
        raise KitError(f"{says} a secret: {', '.join(found)}", "secrets in the environment alone",
                       f"leave it out, and set {found[0].rpartition('.')[2]} in the environment, or its file in NAME_FILE")


def carried() -> dict[str, str]:
    """What goes to the workers, of what is set."""
    names = (*TRAVELLING, *os.environ.get("KTO_SECRETS", "").split())
    return {name: os.environ[name] for name in names if os.environ.get(name)}
