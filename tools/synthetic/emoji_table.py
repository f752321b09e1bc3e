"""Names and categories of emoji: emoji.json of the npm package emoji-datasource-google."""

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
INVISIBLE = ("fe0f", "e007f")  # variation selector 16, and the mark that ends a sequence of tags


class Emoji(NamedTuple):
    """An emoji, or one of its variants in skin tones.

    base: code points of the emoji without skin tones, the same for all its variants.
    names: in lower case, the Unicode name first.
    category: such as "Food & Drink".
    subcategory: such as "food-vegetable".
    skin_tones: of the persons shown; empty for the yellow emoji.
    """

    base: str
    names: tuple[str, ...]
    category: str
    subcategory: str
    skin_tones: tuple[str, ...]


def read_emoji(package: Path) -> dict[str, Emoji]:
    """Return all emoji and their variants by `key_of(code points)`; `package` is the folder of the unpacked package."""
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
    """Return code points as a key of the table; packages differ in case, leading zeros and invisible marks."""
    points = [point.lstrip("0") for point in code_points.lower().replace("_", "-").split("-")]
    return "-".join(point for point in points if point not in INVISIBLE)
