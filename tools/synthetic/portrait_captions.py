"""Write captions of cartoon portraits from their attributes, and parse them.

A caption mentions some of the attributes, as in MM-CelebA-HQ. The attributes can be parsed from it, because no word has
two meanings, so samples can be compared with their captions.
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

_PROBABILITY_MENTIONED = 0.55  # of each visible attribute
_WORDS = {name: "|".join(values) for name, values in VALUES.items()}
_PATTERNS = {
    "style": rf"\bin ({_WORDS['style']}) style\b",
    "background": rf"\b({_WORDS['background']}) background\b",
    "skin": rf"\b({_WORDS['skin']}) skin\b",
    "hair_colour": rf"\b({_WORDS['hair_colour']}) (?:hair|bob|bun|pigtails|ponytail|mohawk)\b",
    "hair": rf"\b({_WORDS['hair']})\b",
    "mood": rf"\b({_WORDS['mood']})\b",
    "glasses": r"\b(no glasses|glasses|sunglasses)\b",
    "facial_hair": r"\b(beard|moustache)\b",  # captions do not mention its absence
    "earrings": r"\b(hoops)\b",
    "clothing": rf"\b({_WORDS['clothing']}) clothes\b",
}


def write_captions(attributes: Mapping[str, str | None], rng: random.Random) -> list[str]:
    """Return ten different captions of a portrait; attributes that are None or missing are not visible in it."""
    captions: list[str] = []
    while len(captions) < NUM_CAPTIONS:
        mentioned = {
            name: value for name, value in attributes.items() if value and rng.random() < _PROBABILITY_MENTIONED
        }
        caption = write_caption(mentioned, rng)
        if caption not in captions and len(parse_caption(caption)) >= 2:
            captions.append(caption)
    return captions


def write_caption(mentioned: Mapping[str, str], rng: random.Random) -> str:
    """Return a caption with these attributes, except facial hair and earrings of value "none"."""
    nouns = _nouns(mentioned)
    rng.shuffle(nouns)
    mood = mentioned.get("mood", "")
    features = f"with {_listing(nouns)}" if nouns else ""
    place = f"in front of {_with_article(mentioned['background'], 'background')}" if "background" in mentioned else ""
    style = f"in {mentioned['style']} style" if "style" in mentioned else ""
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


def parse_caption(caption: str) -> dict[str, str]:
    """Return the attributes that a caption mentions."""
    matches = {name: re.search(pattern, caption.lower()) for name, pattern in _PATTERNS.items()}
    mentioned = {name: match[1] for name, match in matches.items() if match}
    return {name: "none" if value == "no glasses" else value for name, value in mentioned.items()}


def _nouns(mentioned: Mapping[str, str]) -> list[str]:
    """Return the features and clothes of the person in words."""
    colour = f" {mentioned['hair_colour']}" if "hair_colour" in mentioned else ""
    hair = HAIR[mentioned["hair"]] if "hair" in mentioned else "{colour} hair" if colour else ""
    words = {
        "hair": hair.format(colour=colour).strip(),
        "skin": f"{mentioned.get('skin')} skin",
        "glasses": "no glasses" if mentioned.get("glasses") == "none" else mentioned.get("glasses", ""),
        "facial_hair": f"a {mentioned.get('facial_hair')}",
        "earrings": mentioned.get("earrings", ""),
        "clothing": f"{mentioned.get('clothing')} clothes",
    }
    omitted = [name for name in ("facial_hair", "earrings") if mentioned.get(name, "none") == "none"]
    return [
        text for name, text in words.items() if text and name not in omitted and (name in mentioned or name == "hair")
    ]


def _with_article(adjective: str, noun: str) -> str:
    words = f"{adjective} {noun}".strip()
    return f"an {words}" if words[0] in "aeio" else f"a {words}"


def _listing(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
