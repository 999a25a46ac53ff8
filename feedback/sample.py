"""Sample replies of a trained model for people to rate, in formats that `kto data prepare` reads."""

import json
from pathlib import Path

from helpers import files
from helpers.errors import KitError

INTERFACE = """<View>
  <Text name="shown" value="$shown"/>
  <Text name="answer" value="$reply"/>
  <Choices name="vote" toName="answer" choice="single" required="true"><Choice value="up"/><Choice value="down"/></Choices>
</View>"""
"""the labelling interface to paste into Label Studio"""

KINDS = {
    ".json": f"import it into Label Studio, with this labelling interface:\n{INTERFACE}\nexport as JSON when rated",
    ".jsonl": "log it into an Argilla dataset with the text fields prompt and reply and a label question `rating` (up, down); "
              "export its records with to_json()",
    ".csv": "open it in a spreadsheet and write up or down into the column rating; save it as CSV",
}


def kind_of(output: Path) -> str:
    """The ending of a file that can be written; KitError for another one."""
    if output.suffix not in KINDS:
        raise KitError(f"{output.name} is of no kind that is written", f"an end in {', '.join(KINDS)}", "correct --output")
    return output.suffix


def write(replies: list[dict], output: Path) -> str:
    """Write `{"turns": the prompt's, "reply": text}` for rating; returns what to do with the file.

    A prompt of several turns stands as a JSON list in `prompt`, which is read again, and as a text in `shown`, which people read.
    """
    import pandas as pd

    kind, rows = kind_of(output), []
    for each in replies:
        turns = each["turns"]
        prompt = turns[0]["content"] if len(turns) == 1 else json.dumps(turns, ensure_ascii=False)
        shown = "\n\n".join(f"[{turn['role']}] {turn['content']}" for turn in turns)
        rows.append({"shown": shown, "reply": each["reply"], "rating": "", "prompt": prompt})
    if kind == ".csv":
        text = "\ufeff" + pd.DataFrame(rows).to_csv(index=False)  # with its mark a spreadsheet reads it as UTF-8
    else:
        rows = [{name: row[name] for name in ("prompt", "reply", "shown")} for row in rows]
        if kind == ".json":
            text = json.dumps([{"data": row} for row in rows], indent=1, ensure_ascii=False)
        else:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    files.write(output, text)
    return f"{len(rows):,} replies in {output}: {KINDS[kind]}\nthen: kto data prepare RATED_FILE --name second-round"
