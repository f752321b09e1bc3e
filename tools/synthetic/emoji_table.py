"""What the pictures of emoji packages are called: emoji.json of the npm package emoji-datasource-google."""

import json
from pathlib import Path
from typing import NamedTuple

SKIN_TONES = {
    "1F3FB": "light",
    "1F3FC": "medium-light",
    "1F3FD": "medium",
    "1F3FE": "medium-dark",
    "1F3FF": "dark",
}
UNSEEN = ("fe0f", "e007f")  # variation selector 16, and the mark that ends a sequence of tags


class Emoji(NamedTuple):
    """An emoji, or one of its variants in skin tones.

    base: code points of the emoji without skin tones, which all its variants share.
    names: what it is called, the Unicode name first; lower case.
    category: such as "Food & Drink".
    subcategory: such as "food-vegetable".
    skin_tones: those of its persons; none for the yellow emoji.
    """

    base: str
    names: tuple[str, ...]
    category: str
    subcategory: str
    skin_tones: tuple[str, ...]


def read_emoji(package: Path) -> dict[str, Emoji]:
    """Return all emoji and their variants by `key_of` their code points; `package` is the unpacked package's folder."""
    table = {}
    for row in json.loads((package / "emoji.json").read_text(encoding="utf-8")):
        names = dict.fromkeys(
            " ".join(name.lower().replace("_", "-").split("-")) for name in (row["name"], *row["short_names"])
        )
        plain = Emoji(row["unified"], tuple(names), row["category"], row["subcategory"], ())
        table[key_of(row["unified"])] = plain
        for tones, variant in row.get("skin_variations", {}).items():
            skin_tones = tuple(SKIN_TONES[tone] for tone in tones.split("-"))
            table[key_of(variant["unified"])] = plain._replace(skin_tones=skin_tones)
    return table


def key_of(code_points: str) -> str:
    """Return code points in the form of the table; packages differ in case, zeros and marks that are not seen."""
    points = [point.lstrip("0") for point in code_points.lower().replace("_", "-").split("-")]
    return "-".join(point for point in points if point not in UNSEEN)
