"""Random images and clips with the statistics of natural ones, cut into tokens.

Axes: F frames, B fields, L tokens, C pixels of a patch.
"""

import numpy as np

SPEED = 1.0  # median speed of what moves in a clip, in pixels per frame


def random_fields(num_fields: int, height: int, width: int, seed: int) -> np.ndarray:
    """Return Gaussian fields with variance 1 and the power spectrum 1 / frequency^2, (num_fields, height, width)."""
    frames: np.ndarray = random_clips(num_fields, 1, height, width, seed)[0]
    return frames


def random_clips(
    num_fields: int, num_frames: int, height: int, width: int, seed: int, speed: float = SPEED
) -> np.ndarray:
    """Return Gaussian clips with variance 1, (num_frames, num_fields, height, width); each frame is a random field.

    The power at spatial frequency f and temporal frequency w is 1 / f^2 * v f / ((v f)^2 + w^2) / pi: the spectrum of
    Dong and Atick (1995) for images that move at random speeds u with the density v / (u^2 + v^2) / pi. A wave of
    frequency f thus keeps the fraction exp(-2 pi v f) of its amplitude from one frame to the next; the rest is new.

    Args:
        num_fields, num_frames, height, width: sizes, in pixels.
        seed: seed of the fields; the first frame does not depend on the number of frames.
        speed: v, in pixels per frame.
    """
    # A window of a larger field, because the spectrum makes fields periodic.
    frequencies = np.hypot(np.fft.fftfreq(2 * height)[:, None] * height, np.fft.fftfreq(2 * width) * width)
    frequencies[0, 0] = np.inf
    per_pixel = np.hypot(np.fft.fftfreq(2 * height)[:, None], np.fft.fftfreq(2 * width))
    kept = np.exp(-2 * np.pi * speed * per_pixel)
    generator = np.random.default_rng([seed, 0])
    spectrum: np.ndarray | None = None
    frames = []
    for _ in range(num_frames):
        new = np.fft.fft2(generator.standard_normal((num_fields, 2 * height, 2 * width))) / frequencies
        spectrum = new if spectrum is None else kept * spectrum + np.sqrt(1 - kept**2) * new
        frames.append(np.fft.ifft2(spectrum).real[:, :height, :width])
    clips = np.stack(frames)
    return clips / clips.std()


def tokens_of(clips: np.ndarray, patch_size: int) -> np.ndarray:
    """Cut clips into tokens, frame after frame: (F, B, height, width) -> (L, B, C) float32, C = patch_size^2."""
    num_frames, num_fields, height, width = clips.shape
    rows, columns = height // patch_size, width // patch_size
    cut = clips.reshape(num_frames, num_fields, rows, patch_size, columns, patch_size)
    return cut.transpose(0, 2, 4, 1, 3, 5).reshape(-1, num_fields, patch_size**2).astype(np.float32)
