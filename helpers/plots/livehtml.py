"""What the live view shows in a notebook: a training's state as one piece of HTML, the curves drawn as SVG.

Made of text alone, so a redraw takes a few milliseconds and leaves the processor to the training. The card brings its
own light background, so that it reads the same in a dark theme; panels, colours and units are the still figure's.
"""

from html import escape

from . import CROWDED, FAINT, INK, ORANGE, PANELS, SERIES, VERMILLION

WIDTH, HEIGHT = 470, 170
LEFT, RIGHT, TOP, BOTTOM = 52, 18, 24, 22
BUCKETS = 120
"""A longer curve is drawn as this many means, with their least and greatest values as a band."""


def page(state) -> str:
    """The whole card for a helpers.plots.live.State: bar, numbers, four panels, the last warning."""
    panels = "".join(panel(state, *each) for each in PANELS)
    return (
        f'<div style="max-width:1000px;box-sizing:border-box;padding:10px;background:#fff;color:{INK};'
        'border:1px solid #ccc;border-radius:4px;font:13px/1.5 sans-serif">'
        f"{_bar(state)}{_numbers(state)}"
        f'<div style="display:grid;grid-template-columns:repeat(auto-fit,minmax(380px,1fr));gap:6px">{panels}</div>'
        f"{_alarm(state)}</div>"
    )


def panel(state, title: str, unit: str, columns) -> str:
    """One panel as SVG: curves, held-out points, checkpoints; its label says in words where each curve stands."""
    curves = {column: state.curves[column] for column in columns if state.curves.get(column)}
    held_out = {column: state.held_out[column] for column in columns if state.held_out.get(column)}
    shapes = {column: bucketed(points) if len(points) > CROWDED else (points, []) for column, points in curves.items()}
    drawn_points = [outline or line for line, outline in shapes.values()] + list(held_out.values())
    values = [value for points in drawn_points for _, value in points]
    words = ", ".join(f"{SERIES[column][3]} {points[-1][1]:.3g}" for column, points in curves.items()) or "nothing yet"
    scale = _Scale(state, values, zero="loss" not in columns)
    drawn = [_axes(scale, title, unit)]
    drawn += [_checkpoint(scale.x(step)) for step in state.checkpoints]
    drawn += [_curve(scale, *shape, SERIES[column]) for column, shape in shapes.items()]
    drawn += [_dots(scale, points, SERIES[column][0], held_out=True) for column, points in held_out.items()]
    drawn.append(_newest(curves))
    return (f'<svg role="img" aria-label="{escape(title)}: {escape(words)}" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'style="width:100%;height:auto;font:11px sans-serif" fill="{INK}">{"".join(drawn)}</svg>')


class _Scale:
    """Steps and values to the panel's coordinates; the range holds every value, and zero where it means something."""

    def __init__(self, state, values, zero: bool):
        self.last = max(state.total or 0, state.step, 1)
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        low, high = (min(low, 0.0), max(high, 0.0)) if zero else (low, high)
        room = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
        self.low, self.high = low - room, high + room

    def x(self, step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / self.last

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - self.low) / (self.high - self.low)


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers within low..high, 1, 2 or 5 times a power of ten apart."""
    from math import ceil, floor, log10

    rough = (high - low) / about
    power = 10.0 ** floor(log10(rough))
    apart = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    return [n * apart for n in range(ceil(low / apart), floor(high / apart) + 1)]


def _axes(scale: _Scale, title: str, unit: str) -> str:
    parts = [f'<text x="{LEFT}" y="14" font-weight="bold">{escape(title)}</text>',
             f'<text transform="translate(9 {(HEIGHT + TOP - BOTTOM) / 2}) rotate(-90)" text-anchor="middle" '
             f'font-size="9">{escape(unit)}</text>']
    for value in ticks(scale.low, scale.high):
        y, dark = scale.y(value), "#999" if value == 0 else "#e4e4e4"
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="{dark}"/>'
                     f'<text x="{LEFT - 4}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for step in (step for step in ticks(0, scale.last) if step == int(step)):
        parts.append(f'<text x="{scale.x(step):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{step:.0f}</text>')
    return "".join(parts)


def _curve(scale: _Scale, line, outline, style) -> str:
    """A line, with its band where it has an outline, else with its dots while there is room for them."""
    colour, dash, *_ = style
    dashes = ' stroke-dasharray="6 3"' if dash == "--" else ""
    band = f'<path d="{_path(scale, outline)}z" fill="{colour}" opacity="0.2"/>' if outline else ""
    dots = _dots(scale, line, colour) if len(line) <= 40 else ""
    return f'{band}<path d="{_path(scale, line)}" fill="none" stroke="{colour}" stroke-width="1.7"{dashes}/>{dots}'


def _dots(scale: _Scale, points, colour: str, held_out: bool = False) -> str:
    """A dot a point; large and open for held-out values."""
    look = f'r="3.5" fill="#fff" stroke="{colour}" stroke-width="1.5"' if held_out else f'r="2" fill="{colour}"'
    return "".join(f'<circle cx="{scale.x(step):.1f}" cy="{scale.y(value):.1f}" {look}/>' for step, value in points)


def _checkpoint(x: float) -> str:
    return (f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="{FAINT}" stroke-dasharray="2 3"/>'
            f'<path d="M{x:.1f} {HEIGHT - BOTTOM - 6}l-4 7h8z" fill="{INK}"/>')


def bucketed(points, buckets: int = BUCKETS):
    """(the means of equal parts of the points, the outline of their least and greatest values)."""
    size = -(-len(points) // buckets)
    means, lows, highs = [], [], []
    for start in range(0, len(points), size):
        steps, values = zip(*points[start : start + size], strict=True)
        means.append((steps[-1], sum(values) / len(values)))
        lows.append((steps[-1], min(values)))
        highs.append((steps[-1], max(values)))
    return means, highs + lows[::-1]


def _path(scale: _Scale, points) -> str:
    return "M" + "L".join(f"{scale.x(step):.1f} {scale.y(value):.1f}" for step, value in points)


def _newest(curves) -> str:
    """The newest values in the panel's upper right corner, in their curves' colours; named where there are two."""
    spans = []
    for column, points in curves.items():
        colour, _, _, name = SERIES[column]
        words = f"{name} {points[-1][1]:.3g}" if len(curves) > 1 else f"{points[-1][1]:.3g}"
        spans.append(f'<tspan fill="{colour}">{words}</tspan>')
    return f'<text x="{WIDTH - RIGHT}" y="14" text-anchor="end" font-weight="bold">{" · ".join(spans)}</text>'


def _bar(state) -> str:
    """The progress bar, a notch for each checkpoint."""
    share = min(1.0, state.step / state.total) if state.total else 0.0
    notches = "".join(f'<div style="position:absolute;left:{100 * step / state.total:.2f}%;top:0;width:2px;height:100%;'
                      f'background:{ORANGE}"></div>' for step in state.checkpoints if state.total)
    return (f'<div role="progressbar" aria-valuenow="{100 * share:.0f}" aria-valuemin="0" aria-valuemax="100" '
            'style="position:relative;height:12px;background:#e4e4e4;border-radius:3px;overflow:hidden">'
            f'<div style="width:{100 * share:.1f}%;height:100%;background:#0072B2"></div>{notches}</div>')


def _numbers(state) -> str:
    cells = "".join(f'<span style="white-space:nowrap"><span style="color:#666">{escape(name)}</span> '
                    f"<b>{escape(value)}</b></span>" for name, value in state.numbers().items())
    return ('<div style="display:flex;flex-wrap:wrap;gap:2px 18px;margin:6px 0;font-variant-numeric:tabular-nums">'
            f"{cells}</div>")


def _alarm(state) -> str:
    """The failure, else the last warning, if there was one."""
    words = state.failure or state.warning
    return f'<div style="color:{VERMILLION};margin-top:6px">{escape(words[:300])}</div>' if words else ""
