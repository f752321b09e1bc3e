"""What the tests of `prepare` do over and over."""

from data.prepared.tiny import prepare_faces


def prepare_again(place, out, **options):
    return prepare_faces(place / "mm", out, place / "kl", **options)


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    return message
