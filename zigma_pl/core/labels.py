"""Labels below the images of a grid, wrapped and shortened to their width."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

MAX_LINES = 4
MAX_CHARACTERS = 200  # per label; longer texts never fit into MAX_LINES
LEAST_FONT_PX = 11
SIZES_PER_WIDTH = 9  # image width divided by font size, for about 15 characters per line at any width
COLOUR = (40, 40, 40)


class LabelStrip:
    """Labels for images of equal width, with the height of the longest label.

    Args:
        labels: one label per image; all may be empty.
        width_px: width of the images.

    Attributes:
        height_px: height of the labels, 0 if all are empty.
    """

    def __init__(self, labels: Sequence[str], width_px: int) -> None:
        self.height_px = 0
        self._width_px = width_px
        self._wrapped: list[list[str]] = []
        if any(labels):
            size = max(LEAST_FONT_PX, width_px // SIZES_PER_WIDTH)
            self._font = _font(size)
            self._line_px = sum(self._font.getmetrics())
            self._wrapped = [wrapped(label, self._font, width_px - size // 2) for label in labels]
            self.height_px = max(map(len, self._wrapped)) * self._line_px

    def draw(self, index: int, canvas: Image.Image, left_px: int, top_px: int) -> None:
        """Draw a label, horizontally centred, with its rectangle's upper left corner at (left_px, top_px)."""
        for number, line in enumerate(self._wrapped[index] if self._wrapped else ()):
            position = (left_px + self._width_px / 2, top_px + number * self._line_px)
            ImageDraw.Draw(canvas).text(position, line, COLOUR, self._font, anchor="ma")


def wrapped(text: str, font: ImageFont.FreeTypeFont, width_px: int) -> list[str]:
    """Wrap a text to at most MAX_LINES lines of a width, ending with an ellipsis if the text is shortened.

    Words that are longer than a line are broken.
    """
    lines: list[str] = []
    for word in " ".join(text.split())[:MAX_CHARACTERS].split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width_px:
            lines[-1] += f" {word}"
            continue
        while word:
            length = next((n for n in range(len(word), 1, -1) if font.getlength(word[:n]) <= width_px), 1)
            lines.append(word[:length])
            word = word[length:]
    if len(lines) <= MAX_LINES:
        return lines
    last = lines[MAX_LINES - 1]
    while last and font.getlength(f"{last}…") > width_px:
        last = last[:-1].rstrip()
    return [*lines[: MAX_LINES - 1], f"{last}…"]


@cache
def _font(size_px: int) -> ImageFont.FreeTypeFont:
    from matplotlib import get_data_path  # slow to import

    # Matplotlib's font supports more alphabets than Pillow's default font.
    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size_px)
