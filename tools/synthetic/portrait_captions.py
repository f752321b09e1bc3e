"""Captions of cartoon portraits, out of their attributes, and back.

A caption tells some of the attributes, as those of MM-CelebA-HQ do. What it tells can be read off it again, since no
word stands for two things: so samples can be checked against the captions that they were drawn under.
"""

import random
import re
from collections.abc import Mapping, Sequence

NUM_CAPTIONS = 10

HAIR = {
    "short": "short{colour} hair",
    "curly": "curly{colour} hair",
    "long": "long{colour} hair",
    "bob": "a{colour} bob",
    "bun": "a{colour} bun",
    "pigtails": "{colour} pigtails",
    "ponytail": "a{colour} ponytail",
    "mohawk": "a{colour} mohawk",
    "bald": "a bald head",
    "cap": "a cap",
    "beanie": "a beanie",
    "hat": "a hat",
    "turban": "a turban",
    "headscarf": "a headscarf",
}
VALUES: dict[str, tuple[str, ...]] = {
    "style": ("lorelei", "notionists", "open peeps", "personas", "micah", "adventurer"),
    "background": ("white", "grey", "yellow", "orange", "green", "blue", "purple", "pink"),
    "skin": ("light", "tan", "dark"),
    "hair_colour": ("black", "brown", "blond", "red", "grey", "blue", "pink", "green"),
    "hair": tuple(HAIR),
    "mood": ("smiling", "laughing", "frowning", "surprised"),
    "glasses": ("none", "glasses", "sunglasses"),
    "facial_hair": ("none", "beard", "moustache"),
    "earrings": ("none", "hoops"),
    "clothing": ("red", "orange", "yellow", "green", "blue", "purple", "white", "black"),
}

_PROBABILITY_TOLD = 0.55  # of each attribute that can be told
_WORDS = {name: "|".join(values) for name, values in VALUES.items()}
_PATTERNS = {
    "style": rf"\bin ({_WORDS['style']}) style\b",
    "background": rf"\b({_WORDS['background']}) background\b",
    "skin": rf"\b({_WORDS['skin']}) skin\b",
    "hair_colour": rf"\b({_WORDS['hair_colour']}) (?:hair|bob|bun|pigtails|ponytail|mohawk)\b",
    "hair": rf"\b({_WORDS['hair']})\b",
    "mood": rf"\b({_WORDS['mood']})\b",
    "glasses": r"\b(no glasses|glasses|sunglasses)\b",
    "facial_hair": r"\b(beard|moustache)\b",  # that there is none is not told
    "earrings": r"\b(hoops)\b",
    "clothing": rf"\b({_WORDS['clothing']}) clothes\b",
}


def write_captions(attributes: Mapping[str, str | None], rng: random.Random) -> list[str]:
    """Return ten different captions of a portrait; attributes that are None or left out do not show in it."""
    captions: list[str] = []
    while len(captions) < NUM_CAPTIONS:
        told = {name: value for name, value in attributes.items() if value and rng.random() < _PROBABILITY_TOLD}
        caption = write_caption(told, rng)
        if caption not in captions and len(told_by(caption)) >= 2:
            captions.append(caption)
    return captions


def write_caption(told: Mapping[str, str], rng: random.Random) -> str:
    """Return a caption that tells these attributes, as far as there are words for them."""
    nouns = _nouns(told)
    rng.shuffle(nouns)
    mood = told.get("mood", "")
    features = f"with {_listing(nouns)}" if nouns else ""
    place = f"in front of {_with_article(told['background'], 'background')}" if "background" in told else ""
    style = f"in {told['style']} style" if "style" in told else ""
    person = _with_article(mood, "person")
    sentences = [
        f"{person} {features} {place} {style}",
        f"A drawing {style} of {person} {features} {place}",
        f"A portrait {style} of someone {mood} {features} {place}",
        f"The picture {style} shows {_with_article(mood, 'face')} {features} {place}",
    ]
    if nouns:
        is_so = f"has {_listing(nouns)} and is {mood}" if mood else f"has {_listing(nouns)}"
        sentences += [f"This person {style} {place} {is_so}", f"Someone {place} {style} {is_so}"]
    sentence = " ".join(rng.choice(sentences).split())
    return f"{sentence[0].upper()}{sentence[1:]}."


def told_by(caption: str) -> dict[str, str]:
    """Return the attributes that a caption tells."""
    found = {name: re.search(pattern, caption.lower()) for name, pattern in _PATTERNS.items()}
    told = {name: match[1] for name, match in found.items() if match}
    return {name: "none" if value == "no glasses" else value for name, value in told.items()}


def _nouns(told: Mapping[str, str]) -> list[str]:
    """Return what a person has or wears."""
    colour = f" {told['hair_colour']}" if "hair_colour" in told else ""
    hair = HAIR[told["hair"]] if "hair" in told else "{colour} hair" if colour else ""
    words = {
        "hair": hair.format(colour=colour).strip(),
        "skin": f"{told.get('skin')} skin",
        "glasses": "no glasses" if told.get("glasses") == "none" else told.get("glasses", ""),
        "facial_hair": f"a {told.get('facial_hair')}",
        "earrings": told.get("earrings", ""),
        "clothing": f"{told.get('clothing')} clothes",
    }
    untold = [name for name in ("facial_hair", "earrings") if told.get(name, "none") == "none"]
    return [text for name, text in words.items() if text and name not in untold and (name in told or name == "hair")]


def _with_article(adjective: str, noun: str) -> str:
    words = f"{adjective} {noun}".strip()
    return f"an {words}" if words[0] in "aeio" else f"a {words}"


def _listing(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
