"""Write <run>/report.html: results, plots, replies, settings and versions on one page for any browser."""

import base64
import re
from html import escape
from pathlib import Path

from helpers import files
from helpers.runs import Run

from .terminal import cell

PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 72em; margin: 2em auto; padding: 0 1em; color-scheme: light dark; }}
img {{ max-width: 100%; background: white; }}
table {{ border-collapse: collapse; font-size: 14px; }}
th, td {{ border: 1px solid #8888; padding: 4px 10px; text-align: left; vertical-align: top; white-space: pre-wrap; }}
pre {{ overflow-x: auto; font-size: 13px; }}
</style></head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""
FIGURES = {
    "training": "Loss, rewards, margin and KL of the training by step",
    "checkpoints": "The checkpoints' figures",
    "heldout_rewards": "Implied rewards of the held-out rows, before and after training",
    "heldout_by_step": "Held-out accuracy and margin of the checkpoints, by step",
}
"""Figures in the order of the page, and what each shows."""


def write(run: Run, facts: dict) -> Path:
    """Write the page; `facts` (pipeline.summary) come first. What the run does not have is left out."""
    record = run.record()
    parts = ["<h2>Results</h2>", table(facts)]
    for path in sorted(run.figures.glob("*.png"), key=lambda path: [*FIGURES, path.stem].index(path.stem)):
        data, words = base64.b64encode(path.read_bytes()).decode(), FIGURES.get(path.stem, path.stem.replace("_", " "))
        parts += [f"<h2>{escape(words)}</h2>", f'<img alt="{escape(words)}" src="data:image/png;base64,{data}">']
    replies = run.export / "before_after.html"
    if replies.exists() and (found := re.search(r"<table.*</table>", replies.read_text(encoding="utf-8"), re.DOTALL)):
        parts += ["<h2>Replies to held-out prompts, before and after training</h2>", found[0]]
    data = {key: value for key, value in record.get("dataset", {}).items() if not isinstance(value, dict | list)}
    settings = run.config_file.read_text(encoding="utf-8") if run.config_file.exists() else ""
    parts += ["<h2>Data</h2>", table(data), "<h2>Settings</h2>", f"<pre>{escape(settings)}</pre>",
              "<h2>Versions</h2>", table({"Python": record.get("python"), **record.get("versions", {})})]
    return files.write(run.folder / "report.html", PAGE.format(title=escape(f"{run.name}: KTO"), body="\n".join(parts)))


def table(facts: dict) -> str:
    """Two columns; what is not known is left out."""
    rows = [f"<tr><th>{escape(str(name))}</th><td>{escape(cell(value))}</td></tr>" for name, value in facts.items()
            if value not in (None, "", {}, [])]
    return f"<table>{''.join(rows)}</table>"
