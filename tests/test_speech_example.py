"""The speech example, prepared for real and run in this process without a server, gives what the
model gives as its authors ship it."""

import importlib
import importlib.util
import sys
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PACKAGES = ("silero_vad", "torch", "tritonclient")
MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]

Array = npt.NDArray[Any]

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]


def example_module(name: str) -> ModuleType:
    """A script of the examples, which find one another by name."""
    if str(EXAMPLES) not in sys.path:
        sys.path.append(str(EXAMPLES))
    return importlib.import_module(name)


class Direct:
    """Runs `speech_stream` in this process and keeps what it remembers of each stream, as the
    server does; stands where the example has a connection."""

    def __init__(self, repository: Path) -> None:
        import torch

        self._torch = torch
        self.whole, self.stream = (
            torch.jit.load(repository / name / "1" / "model.pt")  # type: ignore[no-untyped-call]
            for name in ("silero_vad", "speech_stream")
        )
        self.heard: dict[int | str, Sequence[Any]] = {}

    def infer(
        self, model: str, inputs: Mapping[str, Array], outputs: Sequence[str], step: Any
    ) -> dict[str, Array]:
        assert model == "speech_stream"
        assert step.start is (step.sequence not in self.heard)
        zeros = self._torch.zeros
        before = self.heard.pop(step.sequence, (zeros(1, 64), zeros(1, 2, 128)))
        with self._torch.inference_mode():
            audio = self._torch.from_numpy(inputs["audio__0"])
            probability, *after = self.stream(audio, *before)
        if not step.end:
            self.heard[step.sequence] = after
        return {outputs[0]: probability.numpy()}


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Direct:
    folder = tmp_path_factory.mktemp("speech")
    example_module("prepare").prepare_silero(folder)
    return Direct(folder)


def test_the_made_up_voice_is_heard(direct: Direct) -> None:
    module = example_module("speech")
    first = list(module.probabilities(direct, module.made_up()))
    again = list(module.probabilities(direct, module.made_up()))
    assert first == again
    assert max(first[:14]) < 0.1
    assert np.mean(np.array(first[17:45]) > 0.5) > 0.9
    assert max(first[-5:]) < 0.1
    assert direct.heard == {}  # every stream has ended


def own_numbers(direct: Direct, samples: Array) -> list[float]:
    """What the package's own model makes of a recording, window by window."""
    import torch

    script = direct.whole
    script.reset_states()
    cut = torch.from_numpy(example_module("speech").windows(samples))
    with torch.inference_mode():
        return [float(script(window[None], 16000)) for window in cut]


def test_the_numbers_of_a_stream_are_those_of_the_package(direct: Direct) -> None:
    module = example_module("speech")
    noise = np.random.default_rng(5).standard_normal(16000).astype(np.float32) / 8
    for samples in (module.made_up(), noise):
        expected = own_numbers(direct, samples)
        assert list(module.probabilities(direct, samples)) == expected


def test_streams_that_share_batches_keep_their_numbers(direct: Direct) -> None:
    import torch

    module = example_module("speech")
    generator = np.random.default_rng(6)
    recordings = [module.made_up()[start:][: 20 * 512] for start in range(0, 16000, 2000)]
    recordings += [0.1 * generator.standard_normal(20 * 512).astype(np.float32) for _ in range(8)]
    cut = torch.from_numpy(np.stack([module.windows(samples) for samples in recordings]))
    states, found = (torch.zeros(16, 64), torch.zeros(16, 2, 128)), []
    with torch.inference_mode():
        for i in range(20):
            probability, *states = direct.stream(cut[:, i], *states)
            found.append(probability[:, 0])
    expected = [own_numbers(direct, samples) for samples in recordings]
    np.testing.assert_allclose(torch.stack(found, 1), expected, atol=1e-5)


@pytest.mark.parametrize(("samples", "rows"), [(0, 0), (1, 1), (512, 1), (513, 2)])
def test_a_recording_is_cut_into_windows(samples: int, rows: int) -> None:
    cut = example_module("speech").windows(np.ones(samples, np.float32))
    assert cut.shape == (rows, 512)
    assert cut.sum() == samples


def write_wav(path: Path, rate: int, channels: int) -> None:
    with wave.open(str(path), "wb") as file:
        file.setframerate(rate)
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.writeframes(np.array([0, 16384, -32768, 0], "<i2").tobytes())


def test_a_recording_is_read(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", 16000, 1)
    assert example_module("speech").read_wav(tmp_path / "a.wav").tolist() == [0, 0.5, -1, 0]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), (b"", "it ends too soon"), (b"x" * 40, "does not start with RIFF")],
)
def test_what_is_no_recording_is_refused(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "a.wav"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit, match=f"a.wav cannot be read: .*{reason}"):
        example_module("speech").read_wav(path)


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (16000, 2)])
def test_another_form_of_recording_is_refused(tmp_path: Path, rate: int, channels: int) -> None:
    write_wav(tmp_path / "a.wav", rate, channels)
    with pytest.raises(SystemExit, match=f"{rate} Hz, {channels} channels, 16 bits; the model"):
        example_module("speech").read_wav(tmp_path / "a.wav")
