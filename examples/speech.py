"""Where in recordings does someone speak? All of them are listened to at the same time, each as a
stream of its own. Without a recording, a made-up one is used: silence, vowels, silence."""

import argparse
import uuid
import wave
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from client import Client, Step, add_options, connect

Samples = npt.NDArray[np.float32]

RATE = 16000
WINDOW = 512
AT_ONCE = 64
"""How many streams there are at a time, whatever the number of recordings."""
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
    try:
        with wave.open(str(path)) as file:
            form = (file.getframerate(), file.getnchannels(), 8 * file.getsampwidth())
            samples = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise SystemExit(f"{path} cannot be read: {str(error) or 'it ends too soon'}") from None
    if form != (RATE, 1, 16):
        raise SystemExit(
            f"{path} has {form[0]} Hz, {form[1]} channels, {form[2]} bits; "
            f"the model takes {RATE} Hz, 1 channel, 16 bits"
        )
    return np.frombuffer(samples, "<i2").astype(np.float32) / np.float32(32768)


def windows(samples: Samples) -> Samples:
    """The recording cut into windows of 512 samples, [N, 512]; the last is filled with silence."""
    filled = np.zeros((-(-len(samples) // WINDOW), WINDOW), np.float32)
    filled.flat[: len(samples)] = samples
    return filled


def probabilities(client: Client, samples: Samples) -> Iterator[float]:
    """How likely each window holds speech. The server keeps what the model heard before, for this
    stream alone."""
    stream = uuid.uuid4().hex  # so that any number of programs may have streams at the same time
    cut = windows(samples)
    for i, window in enumerate(cut):
        step = Step(stream, start=i == 0, end=i == len(cut) - 1)
        inputs = {"audio__0": window[None]}
        outputs = client.infer("speech_stream", inputs, ("probability__0",), step)
        yield float(outputs["probability__0"][0, 0])


def listen(options: argparse.Namespace, samples: Samples) -> list[float]:
    """The probabilities of a whole recording, over a connection of its own."""
    with connect(options) as client:
        return list(probabilities(client, samples))


def listen_to_all(
    options: argparse.Namespace, recordings: Sequence[Samples]
) -> Iterator[list[float]]:
    """The probabilities of each recording, in order; their streams run at the same time."""
    with ThreadPoolExecutor(min(len(recordings), AT_ONCE)) as threads:
        yield from threads.map(partial(listen, options), recordings)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wav", nargs="*", type=Path, help="16 kHz, one channel, 16 bits")
    add_options(parser)
    options = parser.parse_args()
    recordings = [read_wav(path) for path in options.wav] or [made_up()]
    names = [str(path) for path in options.wav] or ["made up"]
    for name, found in zip(names, listen_to_all(options, recordings), strict=True):
        if len(names) > 1:
            print(f"{name}:")
        for i, probability in enumerate(found):
            bar = " " + "#" * round(40 * probability)
            print(f"{i * WINDOW / RATE:6.2f} s {probability:5.2f}{bar.rstrip()}")


if __name__ == "__main__":
    main()
