import pytest
import torch

from zigma_pl.core.randomness import rand_per_sample, randn_per_sample, sample_generators
from zigma_pl.core.transfer import to_device
from zigma_pl.encoders import HashingTextEncoder
from zigma_pl.interpolant.objective import Objective


def test_a_tensor_that_is_there_stays_as_it_is():
    x = torch.arange(6.0)
    assert to_device(x, "cpu") is x
    assert to_device(x, torch.device("meta")).is_meta


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnGPU:
    @pytest.fixture
    def waiting_is_an_error(self):
        torch.zeros(1, device="cuda")
        torch.cuda.set_sync_debug_mode("error")
        yield
        torch.cuda.set_sync_debug_mode("default")

    def test_a_plain_copy_would_wait(self, waiting_is_an_error):
        with pytest.raises(RuntimeError, match="synchronizing"):
            torch.arange(6.0).to("cuda")

    def test_what_a_step_brings_to_the_device_never_waits(self, waiting_is_an_error):
        encoder, objective = HashingTextEncoder(dim=8, max_tokens=4), Objective()

        def brought(device):
            generators = sample_generators(0, "train", range(5))
            drawn = (randn_per_sample(generators, (3, 8, 8), device=device), rand_per_sample(generators, device=device))
            return *drawn, objective.sample_time(generators, device=device), *encoder(["red hair", "hat"], device)

        on_gpu = brought("cuda")
        torch.cuda.set_sync_debug_mode("default")
        assert all(torch.equal(there.cpu(), here) for there, here in zip(on_gpu, brought("cpu"), strict=True))
