"""The ratios as a picture: for each step and distance a bar, how many times as fast as sshfs, on a scale of powers of ten."""

import math
from html import escape
from typing import Any, Final

from report import Line, lines
from suite import SSHFS

_COLOURS: Final = {"0": "#b9c8d8", "2": "#8aa9c9", "20": "#2f6fa8", "100": "#123e63"}
_OTHER: Final = "#777777"
_LEFT, _WIDTH, _BAR, _GAP, _TOP = 230, 560, 9, 10, 64
_LEAST, _MOST = 0.1, 1000.0


def svg(report: dict[str, Any]) -> str:
    """An SVG document; steps that sshfs or we have no figure of are not in it."""
    by_step: dict[str, list[tuple[Line, float]]] = {}
    for line in lines(report):
        ratio = line.faster(SSHFS)
        if ratio:
            by_step.setdefault(line.step, []).append((line, ratio))
    distances = sorted({line.distance for of in by_step.values() for line, _ in of}, key=float)
    body, top = _legend(distances), _TOP
    bars: list[str] = []
    for step, of in by_step.items():
        height = len(of) * _BAR
        bars.append(_text(_LEFT - 8, top + height / 2 + 4, step, "end"))
        for number, (line, ratio) in enumerate(of):
            bars += _bar(line, ratio, top + number * _BAR)
        target = next((line.target.sshfs for line, _ in of if line.target.sshfs), None)
        if target:
            bars.append(_mark(_x(target), top - 2, height + 4))
        top += height + _GAP
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_LEFT + _WIDTH + 70} {top + 10}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{_LEFT + _WIDTH + 70}" height="{top + 10}" fill="#ffffff"/>',
        *body, *_grid(top), *bars, "</svg>", "",
    ])  # fmt: skip


def _x(ratio: float) -> float:
    part = math.log(min(_MOST, max(_LEAST, ratio)) / _LEAST) / math.log(_MOST / _LEAST)
    return _LEFT + part * _WIDTH


def _bar(line: Line, ratio: float, top: float) -> list[str]:
    one, end = sorted((_x(1), _x(ratio)))
    colour = _COLOURS.get(line.distance, _OTHER)
    about = "≥ " if line.values[SSHFS].least else ""
    title = f"{line.step} at {line.distance} ms: {about}{ratio:.3g} times as fast as sshfs"
    bar = f'<rect x="{one:.1f}" y="{top:.1f}" width="{max(1.0, end - one):.1f}" height="{_BAR - 1}" fill="{colour}">'
    said = f"{about}{ratio:.0f}" if ratio >= 10 else f"{about}{ratio:.2g}"
    label = _text(_x(max(1, ratio)) + 4, top + _BAR - 1, said, "start", 9)
    return [f"{bar}<title>{escape(title)}</title></rect>", label]


def _legend(distances: list[str]) -> list[str]:
    found = [_text(10, 20, "How many times as fast as sshfs over its direct TCP port, by round trip; red: promised at 20 ms")]
    for number, distance in enumerate(distances):
        left = _LEFT + number * 80
        found.append(f'<rect x="{left}" y="30" width="12" height="12" fill="{_COLOURS.get(distance, _OTHER)}"/>')
        found.append(_text(left + 17, 40, f"{distance} ms"))
    return found


def _grid(bottom: float) -> list[str]:
    found = []
    for power in range(-1, 4):
        x, dark = _x(10.0**power), power == 0
        colour = "#444444" if dark else "#dddddd"
        found.append(f'<line x1="{x:.1f}" y1="{_TOP - 8}" x2="{x:.1f}" y2="{bottom}" stroke="{colour}" stroke-width="1"/>')
        found.append(_text(x, _TOP - 11, f"{10.0**power:g}", "middle", 10))
    return found


def _mark(x: float, top: float, height: float) -> str:
    return f'<line x1="{x:.1f}" y1="{top:.1f}" x2="{x:.1f}" y2="{top + height:.1f}" stroke="#c0392b" stroke-width="2"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="#222222">{escape(text)}</text>'
