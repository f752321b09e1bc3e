"""Entry point of `python -m zigma_pl COMMAND`."""

import sys

from zigma_pl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
