"""Fixed features whose scores were stored before the metrics became `torchmetrics.Metric`s.

All values are whole multiples of 1/256 from an integer generator, so the features are the same on every machine.
"""

import numpy as np
import torch

# n real and m generated samples of d features, and what is added to all features.
CASES = {
    "full rank": (60, 50, 8, 0.0),
    "fewer samples than features": (12, 10, 20, 0.0),
    "far from zero": (60, 50, 8, 4096.0),
    "more real than features, fewer generated": (40, 7, 16, 1.0),
}


def features(name):
    """Return real and generated features, (n, d) and (m, d) float32."""
    num_real, num_fake, dim, offset = CASES[name]
    numbers = np.random.Generator(np.random.PCG64(sum(map(ord, name)))).integers(-512, 512, (3, 100, dim))
    real = numbers[0, :num_real] + numbers[1, :1]
    fake = numbers[2, :num_fake] // 2 + numbers[1, :1] // 2
    return tuple(torch.from_numpy(part / 256 + offset).float() for part in (real, fake))


def losses():
    """Return 40 losses and their times, float32."""
    numbers = np.random.Generator(np.random.PCG64(7)).integers(0, 1024, (2, 40))
    numbers[1, :3] = 0, 1024, 1023
    numbers[1][numbers[1] // 103 == 4] = 12  # one part of time without a loss
    return tuple(torch.from_numpy(part / 1024).float() for part in numbers)
