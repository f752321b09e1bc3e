"""The command line with the fake extractor in the place of the real ones. Usage: scored_run.py COMMAND [options]"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from evaluation.fake_extractor import build_fake

from zigma_pl.cli.main import main
from zigma_pl.evaluation import scoring

if __name__ == "__main__":
    scoring.build_extractor = build_fake
    sys.exit(main(sys.argv[1:]))
