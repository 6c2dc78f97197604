#!/usr/bin/env python3
"""Draws docs/chart.svg from the tables under "Beside others" in docs/performance.md.

`chart.py` writes the file. `chart.py --check` fails if the file is not up to date. It needs only
Python's standard library.
"""
import re
import sys
from html import escape
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
WIDTH, LABELS, BARS, ROW = 860, 190, 560, 22
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #24292f }
  .head { font-weight: 600 }
  .note { fill: #57606a }
  .ours { fill: #0969da }
  .peer { fill: #8c959f }
  .range { fill: #8c959f; opacity: .5 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .note { fill: #9198a1 }
    .ours { fill: #4493f8 }
    .peer, .range { fill: #6e7681 }
  }
"""


def tables(text):
    """The rows of the two tables, as lists of cells."""
    section = text.split("\n## Beside others\n")[1].split("\n## ")[0]
    found, rows = [], []
    for line in section.splitlines() + [""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows:
            found.append(rows[2:])
            rows = []
    sizes, speeds = found
    return sizes, speeds


def numbers(cell):
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", cell)]


class Chart:
    def __init__(self):
        self.parts, self.y = [], 0

    def text(self, x, words, kind=""):
        kind = kind and f' class="{kind}"'
        self.parts.append(f'<text x="{x}" y="{self.y}"{kind}>{escape(words)}</text>')

    def bar(self, kind, value, full, low=None):
        """A bar up to `value`. With `low`, the bar is solid up to `low`, and pale after it."""
        for kind, end in [("range", value), (kind, low)] if low else [(kind, value)]:
            self.parts.append(f'<rect class="{kind}" x="{LABELS}" y="{self.y - 12}" '
                              f'width="{BARS * end / full:.1f}" height="15" rx="2"/>')

    def title(self, words, note):
        self.y += 30
        self.text(0, words, "head")
        self.y += 18
        self.text(0, note, "note")
        self.y += 8


def draw(sizes, speeds):
    chart = Chart()
    chart.title("Size of the compressed file",
                "Share of the original (ANS, default); shorter is better.")
    for name, ours, best, *_ in sizes:
        for i, (kind, cell, whose) in enumerate([("ours", ours, "bigsmall"),
                                                 ("peer", best, "best peer")]):
            chart.y += ROW if i == 0 else 18
            if i == 0:
                chart.text(0, name)
            (value,) = numbers(cell)
            chart.bar(kind, value, 100)
            chart.text(LABELS + BARS * value / 100 + 6, f"{cell} {whose}", "note")
        chart.y += 4
    chart.title("Speed of decoding bf16, one thread",
                "Share of the rate of memcpy; longer is better.")
    top = max(max(numbers(cell)) for _, cell in speeds)
    for name, cell in speeds:
        chart.y += ROW
        chart.text(0, name)
        found = numbers(cell)
        low = found[0] if len(found) > 1 else None
        chart.bar("ours" if name.startswith("bigsmall") else "peer", found[-1], top, low)
        chart.text(round(LABELS + BARS * found[-1] / top + 6, 1), cell, "note")
    height = chart.y + 14
    body = "\n".join(chart.parts)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" role="img">\n'
            "<title>Size and speed of bigsmall and other programs</title>\n"
            f"<style>{STYLE}</style>\n{body}\n</svg>\n")


def main():
    svg = draw(*tables((DOCS / "performance.md").read_text(encoding="utf-8")))
    target = DOCS / "chart.svg"
    if sys.argv[1:] == ["--check"]:
        if target.read_text(encoding="utf-8") != svg:
            sys.exit("docs/chart.svg is not up to date: run python3 tools/chart.py")
    elif sys.argv[1:]:
        sys.exit(__doc__)
    else:
        target.write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
