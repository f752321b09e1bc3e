"""The command line with the fake extractor in the place of the real ones."""

from evaluation.fake_extractor import build_fake
from processes import command_line

from zigma_pl.evaluation import scoring


def main(*arguments):
    """Run the command line; not in the process of the tests, in which the fake would stay."""
    scoring.build_extractor = build_fake
    return command_line(*arguments)
