"""Figures as files and as notebook outputs, with alt text.

They are made without pyplot, so nothing global is changed and nothing needs closing. IPython draws a bare matplotlib
Figure only where pyplot is set up for it; these display themselves anywhere, and `show` displays any other.
"""

from functools import lru_cache
from pathlib import Path

from ..errors import KitError

DPI = 144
"""Pixels an inch in the PNG; on a page it is shown with 100 px an inch, so that it is sharp on fine displays too."""


def picture(figsize: tuple[float, float]):
    """An empty white matplotlib Figure of that size (inches), which displays itself in a notebook with alt text."""
    return _class()(figsize=figsize, dpi=DPI, layout="constrained", facecolor="white")


def show(figure, words: str = "") -> None:
    """Display any figure in a notebook, with `words` as its alt text (default: `alt(figure)`). Elsewhere: nothing."""
    from IPython import get_ipython
    from IPython.display import display

    if get_ipython():
        data, metadata = bundle(figure, words)
        display(data, metadata=metadata, raw=True)


def save(figure, path: Path | str) -> Path:
    """Write the figure to `path` (.png, .svg or .pdf by its ending), its folder made where missing. KitError if not."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Software": None} if path.suffix == ".png" else None)
    except (OSError, ValueError) as error:
        raise KitError(f"could not save the figure {path}: {error}",
                       "a writable folder, and a name ending in .png, .svg or .pdf", "choose another path") from None
    return path


def alt(figure) -> str:
    """The figure in words, read off what is drawn: each panel's title, and where each labelled line starts and ends."""
    words = [figure.get_suptitle()] if figure.get_suptitle() else []
    for axes in figure.axes:
        said = []
        for line in axes.get_lines():
            values = [value for value in line.get_ydata() if value == value]
            if values and line.get_label()[0] != "_" and line.get_label() != "checkpoint":
                said.append(f"{line.get_label()} from {values[0]:.3g} to {values[-1]:.3g}")
        words.append(f"{axes.get_title()}: {'; '.join(said) or 'nothing'}")
    return ". ".join(words) + "."


def bundle(figure, words: str = "") -> tuple[dict, dict]:
    """(data, metadata) of the notebook output that shows `figure`: a PNG, its width on the page, and its alt text.

    As HTML too, because JupyterLab 4 gives a bare image no alt text; where HTML is not trusted the bare one is shown.
    """
    from base64 import b64encode
    from html import escape
    from io import BytesIO

    buffer, words = BytesIO(), words or alt(figure)
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    image = {"alt": words, "width": int(figure.get_figwidth() * 100)}
    png = b64encode(buffer.getvalue()).decode()
    page = (f'<img alt="{escape(words)}" width="{image["width"]}" style="max-width:100%;height:auto" '
            f'src="data:image/png;base64,{png}">')
    return {"image/png": png, "text/html": page, "text/plain": words}, {"image/png": image}


@lru_cache
def _class():
    from matplotlib.figure import Figure

    class Picture(Figure):
        def _repr_mimebundle_(self, include=None, exclude=None):
            return bundle(self)

    return Picture
