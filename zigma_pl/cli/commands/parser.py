"""The parser of commands that have options of their own."""

import argparse
from typing import Any


class Parser(argparse.ArgumentParser):
    """Refuses abbreviated options, also those of its subcommands: a misspelt one would set another."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
