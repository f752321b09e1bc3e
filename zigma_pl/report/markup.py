"""HTML and SVG elements as text, with everything escaped that is not markup already."""

from collections.abc import Iterable
from html import escape
from typing import Any

_VOID = {"br", "img", "link", "meta", "source"}


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = str | None | Iterable["Child"]


def tag(element: str, *children: Child, **attributes: Any) -> Markup:
    """Return an element.

    Args:
        element: its name.
        children: markup, or text, which is escaped, or lists of both; None is left out.
        attributes: by name, with _ for -, and a _ behind names that Python keeps for itself (class_). True gives the
            bare name; None and False leave the attribute out.
    """
    given = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    parts = [element]
    for name, value in given.items():
        if value is True:
            parts.append(name)
        elif value is not None and value is not False:
            parts.append(f'{name}="{escape(str(value))}"')
    opened = f"<{' '.join(parts)}>"
    return Markup(opened if element in _VOID else f"{opened}{join(*children)}</{element}>")


def join(*children: Child) -> Markup:
    """Return children one after the other, text escaped."""
    texts: list[str] = []
    for child in children:
        if isinstance(child, Markup):
            texts.append(child)
        elif isinstance(child, str):
            texts.append(escape(child, quote=False))
        elif child is not None:
            texts.append(join(*child))
    return Markup("".join(texts))
