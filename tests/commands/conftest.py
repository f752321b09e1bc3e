import pytest
from data.prepared.tiny import prepare_faces, save_tiny_kl, write_faces


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The faces in `mm`, an autoencoder in `kl`, and the one prepared with the other in `whole`."""
    folder = tmp_path_factory.mktemp("place")
    root, autoencoder = write_faces(folder / "mm"), save_tiny_kl(folder / "kl")
    assert prepare_faces(root, folder / "whole", autoencoder) == 0
    return folder
