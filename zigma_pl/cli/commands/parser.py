"""The parser of the commands that do not use LightningCLI."""

import argparse
from typing import Any


class Parser(argparse.ArgumentParser):
    """Refuses abbreviated options, also in subcommands: a misspelt option could set another one."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
