"""The skeleton of the HTML page; style and script stand beside this file and are put into it."""

import html
from collections.abc import Sequence
from importlib.resources import files

__all__ = ["page"]

# Written into the page, so that the browser itself refuses every request to the network.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; worker-src blob:"
)


def page(
    *, title: str, summary: str, sections: Sequence[str], parts: Sequence[str], data: Sequence[str], plotly: str
) -> str:
    """Put the parts of a report together.

    Args:
        title: plain text.
        summary: plain text under the heading, or nothing.
        sections: titles, plain text; the n-th one's heading has the id ``section-n``, from 1.
        parts: HTML, in order.
        data: JSON of the figures; the n-th one's id is ``figure-n``, from 1.
        plotly: the script that draws them; empty where there are none.

    Returns:
        A complete HTML document.
    """
    resources = files("diffmatch.report")
    scripts = ""
    if data:
        # "<" inside a JSON text can only stand in a string, so its escape is always right, and no tag can begin.
        blocks = [
            f'<script type="application/json" id="figure-{n}">{text.replace("<", chr(92) + "u003c")}</script>'
            for n, text in enumerate(data, start=1)
        ]
        own = resources.joinpath("page.js").read_text(encoding="utf-8")
        scripts = "\n".join([*blocks, f"<script>{plotly}</script>", f"<script>{own}</script>"])
    lines = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',
        f"<title>{html.escape(title)}</title>",
        f"<style>{resources.joinpath('page.css').read_text(encoding='utf-8')}</style>",
        "</head>",
        "<body>",
        "<main>",
        f"<header><h1>{html.escape(title)}</h1>",
        f'<p class="summary">{html.escape(summary)}</p>' if summary else "",
        f"{_contents(sections)}</header>",
        *parts,
        '<noscript><p class="note">Curves and interactive views need JavaScript.</p></noscript>' if data else "",
        "<footer>Made by diffmatch. This file holds everything it shows.</footer>",
        "</main>",
        scripts,
        "</body>",
        "</html>",
        "",
    ]
    return "\n".join(lines)


def _contents(sections: Sequence[str]) -> str:
    """Links to the sections, where there are enough of them to want that."""
    if len(sections) < 4:
        return ""
    links = "".join(
        f'<li><a href="#section-{n}">{html.escape(title)}</a></li>' for n, title in enumerate(sections, start=1)
    )
    return f'<nav aria-label="Contents"><ul>{links}</ul></nav>'
