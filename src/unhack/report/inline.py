"""A matplotlib figure as SVG that may stand inside the page: no styles, and colours that follow the page.

matplotlib writes `style` attributes, which the page's security policy forbids; they become presentation attributes. An
artist's `gid` of the form arm:NAME becomes `data-arm`. Text stays text: it can be searched, copied and read aloud.
"""

from __future__ import annotations

import io
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

PAGE_COLOURS = {
    "#000000": "currentColor",
    "#ffffff": "var(--paper)",
    "#dddddd": "var(--grid)",
    "#888888": "var(--muted)",
    "#d55e00": "var(--vermillion)",
    "#0072b2": "var(--blue)",
}
PNG_SCALE = 2  # pixels per unit: 144 dots per inch
_LINK = "{http://www.w3.org/1999/xlink}href"
_DROPPED = ("metadata", "style")


def svg_text(figure: Figure, name: str) -> str:
    """The figure as an SVG file, the same bytes for the same figure."""
    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG on white."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=PNG_SCALE * figure.dpi, facecolor="white", metadata={"Software": None})
    return out.getvalue()


def inline_svg(figure: Figure, name: str, label: str) -> str:
    """The figure as an element of the page with the accessible name `label`; `name` must be unique in the page."""
    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    source = ElementTree.fromstring(out.getvalue())
    _, _, width, height = source.attrib["viewBox"].split()
    root = ElementTree.Element("svg", {"viewBox": f"0 0 {width} {height}", "width": width, "height": height})
    root.attrib |= {"role": "img", "aria-label": label}
    for child in source:
        _copy(child, root, name)
    return ElementTree.tostring(root, encoding="unicode")


def _copy(source: ElementTree.Element, parent: ElementTree.Element, name: str) -> None:
    if not isinstance(source.tag, str):  # a comment
        return
    tag = source.tag.rpartition("}")[2]
    if tag in _DROPPED:
        return
    attributes = _attributes(source, name)
    if tag == "text":
        attributes.setdefault("fill", "currentColor")
    copy = ElementTree.SubElement(parent, tag, attributes)
    copy.text = source.text if tag == "text" else None
    for child in source:
        _copy(child, copy, name)


def _attributes(source: ElementTree.Element, name: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in source.attrib.items():
        if key == "id":
            if value.startswith("arm:"):
                found["data-arm"] = value.removeprefix("arm:")
            elif not source.tag.endswith("}g"):  # nothing refers to a group
                found["id"] = f"{name}-{value}"
        elif key == _LINK:
            found["href"] = f"#{name}-{value.removeprefix('#')}"
        elif key == "style":
            found |= dict(_declarations(value))
        else:
            found[key] = " ".join(value.replace("url(#", f"url(#{name}-").split())
    return {key: PAGE_COLOURS.get(value, value) for key, value in found.items()}


def _declarations(style: str) -> list[tuple[str, str]]:
    pairs = [part.partition(":") for part in style.split(";") if part.strip()]
    return [(key.strip(), value.strip()) for key, _, value in pairs if key.strip() != "font-family"]
