#!/usr/bin/env python3
"""Opens the pages of `bigsmall inspect --html` in headless Chromium, clicks, and fails on an error.

    tools/test_page.py BIGSMALL [--shots DIR] [FILE ...]

BIGSMALL is the command. Pages are made of models that this script writes, and of FILES. `--shots`
keeps screenshots in both themes and the width of a phone. Prints `SKIPPED` where there is no
Chromium.
"""

import argparse
import base64
import fcntl
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

NAMES = ["chromium", "chromium-browser", "google-chrome"]
# A page may have at most these bytes and nodes, whatever the model.
MOST_BYTES = 4_000_000
MOST_NODES = 6000
EVIL = "</script><img src=x onerror=owned=1>\u202e\u2028\x1b[31m<!--&amp;\"'`${owned=1}"


class Browser:
    """Chromium, driven through two pipes: a message of JSON, then a zero byte."""

    def __init__(self, program, folder):
        pipes = [os.pipe(), os.pipe()]
        # Numbers above those that Chromium expects them at.
        (read, self.to), (self.frm, write) = pipes
        child = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (read, write)]

        def move():
            os.dup2(child[0], 3)
            os.dup2(child[1], 4)

        self.process = subprocess.Popen(
            [
                program,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--remote-debugging-pipe",
                f"--user-data-dir={folder}",
                "--no-first-run",
            ],
            preexec_fn=move,
            pass_fds=(3, 4),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        for fd in [read, write, *child]:
            os.close(fd)
        self.last, self.rest, self.session, self.problems = 0, b"", None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ["Page", "Runtime", "Log", "Network"]:
            self.call(f"{domain}.enable")

    def read(self):
        while b"\0" not in self.rest:
            more = os.read(self.frm, 1 << 20)
            if not more:
                raise EOFError("Chromium ended")
            self.rest += more
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def note(self, message):
        """Keeps what must not happen: errors, warnings, requests."""
        method, params = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.problems.append(params["exceptionDetails"])
        elif method == "Runtime.consoleAPICalled":
            self.problems.append(params["args"])
        elif method == "Log.entryAdded":
            self.problems.append(params["entry"])
        elif method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith("file:"):
                self.problems.append(url)

    def call(self, method, **params):
        self.last += 1
        message = {"id": self.last, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.read()
            if answer.get("id") == self.last:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.note(answer)
            self.events = getattr(self, "events", []) + [answer.get("method")]

    def open(self, page, width=1280, height=900, scheme="light"):
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])
        self.events = []
        self.call("Page.navigate", url=Path(page).resolve().as_uri())
        while "Page.loadEventFired" not in self.events:
            message = self.read()
            self.note(message)
            self.events.append(message.get("method"))

    def value(self, expression):
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, (expression, answer)
        return answer["result"].get("value")

    def click(self, selector, n=0):
        """A click of the mouse in the middle of the `n`-th element."""
        found = f"document.querySelectorAll({json.dumps(selector)})[{n}]"
        self.value(f"{found}.scrollIntoView({{block: 'center'}})")
        place = self.value(
            f"(() => {{ const r = {found}.getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ["mousePressed", "mouseReleased"]:
            self.call(
                "Input.dispatchMouseEvent",
                type=kind,
                x=place[0],
                y=place[1],
                button="left",
                clickCount=1,
            )

    def shot(self, file):
        image = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        Path(file).write_bytes(base64.b64decode(image["data"]))

    def close(self):
        self.process.kill()
        self.process.wait()


def weights(rng, n):
    """`n` weights in BF16 as trained ones are: noise below exponents of a few values."""
    heads = [0x3A, 0x3B, 0x3C, 0x3D, 0xBA, 0xBB, 0xBC, 0xBD]
    data = bytearray(2 * n)
    data[0::2] = rng.randbytes(n)
    data[1::2] = bytes(rng.choices(heads, [1, 6, 20, 4] * 2, k=n))
    return bytes(data)


def write(path, tensors, metadata=None):
    header, at = {}, 0
    if metadata:
        header["__metadata__"] = metadata
    for name, dtype, shape, data in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(data for _, _, _, data in tensors)


def models(folder):
    """Writes models and yields the file of each."""
    rng = random.Random(1)
    rows = weights(rng, 60_000)
    block = []
    for layer in range(24):
        for name in ["self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"]:
            full = f"model.layers.{layer}.{name}.weight"
            block.append((full, "BF16", [600, 200], weights(rng, 120_000)))
        block.append((f"model.layers.{layer}.norm.weight", "F32", [200], rng.randbytes(800)))
    noise = ("noise.mask", "U8", [400_000], rng.randbytes(400_000))
    embed = ("model.embed_tokens.weight", "BF16", [3000, 200], weights(rng, 600_000))
    yield "layers", [embed, *block, noise]
    yield "one", [("weight", "BF16", [600, 100], rows)]
    yield "none", []
    yield "many", [
        (f"model.layers.{i // 1000}.experts.{i % 1000}.w", "BF16", [40], weights(rng, 40))
        for i in range(100_000)
    ]
    yield "flat", [
        (f"{rng.randbytes(20).hex()}{i}", "U8", [4], struct.pack("<I", i)) for i in range(100_000)
    ]
    yield "evil", [
        (EVIL, "BF16", [600, 100], rows),
        (f"layers.0.{EVIL}", "BF16", [600, 100], rows[::-1]),
        ("\u2066\u202d" * 4000, "U8", [4], b"abcd"),
        ("", "U8", [4], b"efgh"),
    ]


def check(browser, page):
    """Clicks through a page."""
    size = os.path.getsize(page)
    assert size < MOST_BYTES, f"{page}: {size} bytes"
    browser.open(page)
    assert browser.value("document.title").endswith("bigsmall")
    browser.value("document.documentElement.style.scrollBehavior = 'auto'")
    tiles = browser.value("document.querySelectorAll('#map g').length")
    depth = "document.querySelectorAll('#path button').length"
    if tiles:
        # The layers that have no place on the page are one tile, which cannot be opened.
        label = "document.querySelector('#map g').getAttribute('aria-label')"
        browser.click("#map g", int("smaller layers" in browser.value(label)))
        first = browser.value("document.querySelector('#details h2').textContent")
        assert browser.value(depth) == 1, "a click on a layer opens it"
        browser.click("#map g")
        assert browser.value("document.querySelectorAll('#map g.chosen').length") <= 1
        assert browser.value("document.querySelector('#details h2').textContent")
        browser.click("#path button")
        assert browser.value(depth) == 0, "and one on the path goes back"
        assert browser.value("document.querySelectorAll('#map g').length") == tiles, first
    if browser.value("document.querySelectorAll('button.row.layer').length"):
        browser.click("button.row.layer")
        assert browser.value("document.querySelectorAll('.within:not([hidden]) .row').length") > 0
        browser.click(".within .row")
        browser.click("button.row.layer")
        assert browser.value("document.querySelectorAll('.within:not([hidden]) .row').length") == 0
    before = browser.value("document.querySelectorAll('#list > .row').length")
    if browser.value("[...document.querySelectorAll('#list > .more')].some((e) => !e.hidden)"):
        label = browser.value("document.querySelector('#list > .more').textContent")
        assert not re.fullmatch(r"Show (\S+) more of \1", label), label
        browser.click("#list > .more")
        assert browser.value("document.querySelectorAll('#list > .row').length") > before
    if browser.value("document.querySelectorAll('.link').length"):
        browser.click(".link")
        assert browser.value(depth) == 1, "a link to a tensor opens its layer"
    colour = "getComputedStyle(document.body).backgroundColor"
    light = browser.value(colour)
    browser.click("#theme")
    dark = browser.value(colour)
    assert light != dark
    browser.open(page, scheme="dark")
    assert browser.value(colour) == dark, "the system's theme and the switch agree"
    nodes = browser.value("document.querySelectorAll('*').length")
    assert nodes < MOST_NODES, f"{page}: {nodes} nodes"
    browser.open(page, width=390, height=844)
    root = "document.documentElement"
    wide = browser.value(f"{root}.scrollWidth - {root}.clientWidth")
    assert wide <= 0, f"{page}: {wide} pixels beside the screen of a phone"
    # What is hostile is text, and visible.
    assert browser.value("typeof owned") == "undefined"
    assert browser.value("document.querySelectorAll('img, iframe, object, link').length") == 0
    text = browser.value("document.body.textContent")
    bad = [c for c in "\x1b\u202e\u2028\u2066\u202d" if c in text]
    assert not bad, f"{page}: {bad} is in the text"
    assert not browser.problems, browser.problems
    print(f"{Path(page).stem:16} {size:>9} bytes, {tiles:>4} tiles, {nodes:>5} nodes")


def shots(browser, page, folder):
    """Screenshots: both themes, an open layer, the width of a phone."""
    name = Path(page).stem
    for scheme in ["light", "dark"]:
        browser.open(page, scheme=scheme)
        height = browser.value("document.documentElement.scrollHeight")
        browser.open(page, height=min(height, 4000), scheme=scheme)
        browser.shot(folder / f"{name}-{scheme}.png")
    browser.open(page)
    if browser.value("document.querySelectorAll('#map g').length"):
        browser.click("#map g")
        browser.value("scrollTo(0, 0)")
        browser.shot(folder / f"{name}-open.png")
    browser.open(page, width=390, height=844)
    height = browser.value("document.documentElement.scrollHeight")
    browser.open(page, width=390, height=min(height, 4000))
    browser.shot(folder / f"{name}-phone.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bigsmall", type=Path)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--shots", type=Path)
    args = parser.parse_args()
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        print("SKIPPED: no Chromium (apt-get install chromium)")
        return
    command = args.bigsmall.resolve()
    # A process of the browser may still write to its profile while that is removed.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        folder = Path(folder)

        def run(*words):
            subprocess.run([command, *words], check=True, stdout=subprocess.DEVNULL)

        inputs = list(args.files)
        for name, tensors in models(folder):
            plain = folder / f"{name}.safetensors"
            write(plain, tensors, {"format": "pt", "note": EVIL})
            run("compress", plain, "-o", folder / f"{name}.bs")
            inputs.append(folder / f"{name}.bs")
            if name == "layers":
                inputs.append(plain)
        browser = Browser(program, folder / "profile")
        try:
            for number, path in enumerate(inputs):
                kind = "-plain" if path.suffix == ".safetensors" else ""
                page = folder / f"{path.stem}{kind}.html"
                page = page if not page.exists() else folder / f"{number}-{page.name}"
                run("inspect", path, "--html", page)
                check(browser, page)
                if args.shots:
                    args.shots.mkdir(parents=True, exist_ok=True)
                    shots(browser, page, args.shots)
        finally:
            browser.close()


if __name__ == "__main__":
    sys.exit(main())
