"""Where in a recording does someone speak? Without a recording, a made-up one is used: silence,
vowels, silence."""

import argparse
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from client import Array, Client, add_options, connect

Samples = npt.NDArray[np.float32]

RATE = 16000
WINDOW = 512
# The lowest resonances of the mouth in Hz, for "ah", "ee", "oh" and "oo".
VOWELS = ((730, 1090, 2440), (270, 2290, 3010), (570, 840, 2410), (300, 870, 2240))


def vowel(formants: tuple[int, ...], pitch: float) -> Samples:
    """A fifth of a second: the harmonics of a voice, loud near the formants, swelling and
    fading."""
    time = np.arange(RATE // 5) / RATE
    swing = pitch * (1 + 0.05 * np.sin(2 * np.pi * 3 * time))
    phase = 2 * np.pi * np.cumsum(swing) / RATE
    sound = np.zeros_like(time)
    for harmonic in range(1, int(4500 / pitch)):
        distances = (harmonic * pitch - np.array(formants)) / 100
        sound += np.sum(1 / (1 + distances**2)) * np.sin(harmonic * phase)
    sound *= np.sqrt(np.sin(np.pi * np.arange(len(time)) / len(time)))
    scaled: Samples = (0.3 * sound / np.abs(sound).max()).astype(np.float32)
    return scaled


def made_up() -> Samples:
    """Half a second of silence, a second of vowels, half a second of silence."""
    silence: Samples = np.zeros(RATE // 2, np.float32)
    voice = [vowel(VOWELS[i % 4], 120 + 15 * (i % 3)) for i in range(5)]
    return np.concatenate([silence, *voice, silence])


def read_wav(path: Path) -> Samples:
    """A recording's samples between -1 and 1. Raises SystemExit for anything but 16 kHz, one
    channel, 16 bits."""
    with wave.open(str(path)) as file:
        form = (file.getframerate(), file.getnchannels(), 8 * file.getsampwidth())
        if form != (RATE, 1, 16):
            raise SystemExit(
                f"{path} has {form[0]} Hz, {form[1]} channels, {form[2]} bits; "
                f"the model takes {RATE} Hz, 1 channel, 16 bits"
            )
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return samples.astype(np.float32) / np.float32(32768)


def windows(samples: Samples) -> Samples:
    """The recording cut into windows of 512 samples, [N, 512]; the last is filled with silence."""
    filled = np.zeros((-(-len(samples) // WINDOW), WINDOW), np.float32)
    filled.flat[: len(samples)] = samples
    return filled


def probabilities(client: Client, samples: Samples) -> Iterator[float]:
    """How likely each window holds speech. The model remembers, so this must be its only stream."""
    # The model forgets what it heard when the number of rows changes.
    _probability(client, np.zeros((2, WINDOW), np.float32))
    for window in windows(samples):
        yield _probability(client, window[None])


def _probability(client: Client, rows: Samples) -> float:
    inputs: dict[str, Array] = {"x": rows, "sr": np.array([RATE], np.int64)}
    return float(client.infer("silero_vad", inputs, ("OUTPUT__0",))["OUTPUT__0"][0, 0])


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wav", nargs="?", type=Path, help="16 kHz, one channel, 16 bits")
    add_options(parser)
    options = parser.parse_args()
    samples = read_wav(options.wav) if options.wav else made_up()
    with connect(options) as client:
        for i, probability in enumerate(probabilities(client, samples)):
            bar = " " + "#" * round(40 * probability)
            print(f"{i * WINDOW / RATE:6.2f} s {probability:5.2f}{bar.rstrip()}")


if __name__ == "__main__":
    main()
