"""What is said of images, with the images: one HTML page that needs nothing else."""

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from PIL import Image

from beit.atomic import write_text
from beit.untrusted import display, in_lines

THUMBNAIL = 160
"""Longest side of a picture on the page, in pixels."""


class Section(NamedTuple):
    """A part of the page: lines, and images beside one another."""

    title: str
    lines: Sequence[str] = ()
    rows: Sequence[Sequence[tuple[str, str]]] = ()
    """Names of images, and what is said of each."""


def write_page(path: Path, title: str, sections: Sequence[Section], picture: Callable[[str], Image.Image]) -> None:
    """Write the page, whole or not at all; `picture` gives that of a name."""

    def thumbnail(name: str) -> str:
        small = picture(name)
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        small.save(buffer := io.BytesIO(), "JPEG")
        return data_uri(buffer.getvalue(), "image/jpeg")

    page = template("page.html.j2", thumbnail=thumbnail, display=display, in_lines=in_lines)
    write_text(path, page.render(title=title, sections=sections).strip() + "\n")


def template(name: str, **filters: Callable[..., Any]) -> jinja2.Template:
    """A page of this folder. It escapes whatever it is given."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("beit.visualize", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(name)


def data_uri(data: bytes, mime_type: str) -> str:
    """`data` as an address that holds it."""
    return f"data:{mime_type};base64,{base64.b64encode(data).decode('ascii')}"
