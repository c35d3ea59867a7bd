"""The report in a real browser, where one is installed."""

import os
import re
import shutil
import struct
import subprocess
import zlib
from types import SimpleNamespace

import numpy as np
import pytest

from diffmatch.report import Report

pytest.importorskip("plotly")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

QUIET = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
WEBGL = {
    "software WebGL": ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"],
    "no WebGL": ["--disable-gpu", "--disable-3d-apis"],
}
# What Chromium says about its own speed without a graphics card; nothing is wrong with the page.
REMARKS = ("willReadFrequently", "GL Driver Message", "Automatic fallback to software WebGL")


def octahedron():
    vertices = np.concatenate([np.eye(3), -np.eye(3)])
    corners = [(x, y, z) for x in (0, 3) for y in (1, 4) for z in (2, 5)]
    outward = [(x, y, z) if (x + y + z) % 2 else (x, z, y) for x, y, z in corners]
    return SimpleNamespace(vertices=vertices, faces=np.array(outward))


def read_png(data):
    """RGB of a picture with 8 bits a channel, with all five filters of the format."""
    width, height, _, color = struct.unpack(">IIBB", data[16:26])
    channels = {2: 3, 6: 4}[color]
    packed, at = b"", 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        packed += data[at + 8 : at + 8 + length] if data[at + 4 : at + 8] == b"IDAT" else b""
        at += 12 + length
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + width * channels)
    image = np.zeros((height, width * channels), np.uint8)
    above = np.zeros(width * channels, np.uint8)
    for n, row in enumerate(rows):
        image[n] = above = _unfiltered(int(row[0]), row[1:], above, channels)
    return image.reshape(height, width, channels)[:, :, :3].astype(int)


def _unfiltered(kind, row, above, channels):
    if kind == 0:
        return row
    if kind == 1:
        return row.reshape(-1, channels).cumsum(axis=0, dtype=np.uint8).ravel()
    if kind == 2:
        return row + above
    old, out = [0] * channels + above.tolist(), [0] * channels
    for n, value in enumerate(row.tolist()):
        left, up, corner = out[n], old[n + channels], old[n]
        if kind == 3:
            guess = (left + up) // 2
        else:
            guess = min((left, up, corner), key=lambda side, at=left + up - corner: abs(at - side))
        out.append((value + guess) & 255)
    return np.array(out[channels:], np.uint8)


def open_page(path, folder, flags, probe):
    """Open the page, run a script at its end, and return its console's lines, the document and a screenshot's path."""
    page = path.read_text(encoding="utf-8").replace("</body>", f"<script>{probe}</script></body>")
    path.write_text(page, encoding="utf-8")
    picture = folder / "page.png"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-quic", *QUIET, *flags]
    command += [f"--user-data-dir={folder / 'profile'}", "--window-size=900,700", "--virtual-time-budget=8000"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--v=0", f"--screenshot={picture}"]
    environment = {**os.environ, "HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_CACHE_HOME": str(folder)}
    done = subprocess.run(
        [*command, path.as_uri()], capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    lines = re.findall(r":CONSOLE[^\]]*\] (.*)", done.stderr)
    return lines, picture, done.stderr


@pytest.mark.parametrize("kind", WEBGL)
def test_the_page_opens_without_an_error_and_shows_the_mesh(kind, tmp_path):
    report = Report("Browser")
    report.add_meshes({"fit": octahedron(), "target": octahedron()})
    report.add_curves({"loss": list(np.geomspace(1, 1e-3, 60))})
    report.write(tmp_path / "report.html")
    probe = """
      setTimeout(() => {
        const drawn = document.querySelectorAll('.stage.live canvas').length > 0;
        const curves = document.querySelectorAll('.chart .scatterlayer path.js-line').length;
        const boxes = [...document.querySelectorAll('.stage')].map((stage) => {
          const box = stage.getBoundingClientRect();
          return [box.left, box.top, box.width, box.height].map(Math.round).join(' ');
        });
        console.log('PROBE ' + drawn + ' ' + curves + ' | ' + boxes.join(' | '));
      }, 5000);"""
    lines, picture, log = open_page(tmp_path / "report.html", tmp_path, WEBGL[kind], probe)
    said = [line for line in lines if "PROBE" in line]
    assert len(said) == 1, log
    assert [line for line in lines if "PROBE" not in line and not any(remark in line for remark in REMARKS)] == []
    state, *boxes = said[0].split('"')[1].removeprefix("PROBE ").split(" | ")
    assert state == ("true 2" if kind == "software WebGL" else "false 2")  # the curve: faint and bold
    assert len(boxes) == 2

    pixels = read_png(picture.read_bytes())
    for number, box in enumerate(boxes):
        left, top, width, height = map(int, box.split())
        stage = pixels[top : top + height, left : left + width]
        saturation = stage.max(axis=2) - stage.min(axis=2)
        blue = (saturation > 40) & (
            (stage[:, :, 2] > stage[:, :, 0]) == (number == 0)
        )  # the fit is blue, the other sand
        middle = blue[height // 3 : 2 * height // 3, width // 3 : 2 * width // 3]
        assert middle.mean() > 0.9
        assert 0.1 < blue.mean() < 0.8
