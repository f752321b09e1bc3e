import numpy as np
import pytest

from zigma_pl.scan.fields import random_clips, random_fields, tokens_of


def test_tokens_are_patches_in_raster_order_of_frame_after_frame():
    clips = np.arange(48).reshape(2, 1, 4, 6)
    tokens = tokens_of(clips, 2)[:, 0].tolist()
    assert tokens[:4] == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11], [12, 13, 18, 19]]
    assert tokens[6] == [24, 25, 30, 31]


def test_fields_have_the_spectrum_of_natural_images():
    fields = random_fields(64, 32, 32, seed=0)
    assert fields.shape == (64, 32, 32)
    assert fields.std() == pytest.approx(1)
    differences = [np.mean((fields[:, :, lag:] - fields[:, :, :-lag]) ** 2) for lag in (1, 2, 4, 8)]
    # The variance of differences grows with the logarithm of the distance.
    np.testing.assert_allclose(np.diff(differences), np.diff(differences).mean(), rtol=0.25)
    np.testing.assert_array_equal(fields, random_fields(64, 32, 32, seed=0))
    assert not np.array_equal(fields, random_fields(64, 32, 32, seed=1))


def test_a_wave_keeps_less_of_its_amplitude_the_higher_its_frequency_and_the_speed():
    """The correlation of a frequency between frames is exp(-2 pi speed frequency)."""
    clips = random_clips(400, 3, 16, 16, seed=0, speed=0.5)
    assert clips.shape == (3, 400, 16, 16)
    assert clips.std() == pytest.approx(1)
    np.testing.assert_allclose([frame.std() for frame in clips], 1, rtol=0.05)
    waves = np.diff(np.diff(clips, axis=2), axis=3)  # these have mostly high frequencies
    high, low = (
        [np.corrcoef(each[0].reshape(-1), each[lag].reshape(-1))[0, 1] for lag in (1, 2)] for each in (waves, clips)
    )
    assert high[0] < low[0] / 2
    assert high[1] < high[0] / 2

    frequencies = np.hypot(np.fft.fftfreq(32)[:, None], np.fft.fftfreq(32))
    expected = np.sum(np.exp(-np.pi * frequencies) * _power(frequencies)) / np.sum(_power(frequencies))
    assert low[0] == pytest.approx(expected, abs=0.03)


def _power(frequencies):
    return 1 / np.where(frequencies == 0, np.inf, frequencies) ** 2


def test_still_images_do_not_change_and_fast_ones_have_nothing_in_common():
    still = random_clips(4, 3, 8, 8, seed=0, speed=0)
    np.testing.assert_allclose(still[2], still[0])
    fast = random_clips(200, 2, 8, 8, seed=0, speed=1e3)
    assert abs(np.corrcoef(fast[0].reshape(-1), fast[1].reshape(-1))[0, 1]) < 0.05
