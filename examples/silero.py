"""The speech detector without a memory of its own: what it remembers comes in and goes out, so that
a server can keep it for any number of streams."""

from pathlib import Path

import torch


class SpeechStream(torch.nn.Module):
    """The 16 kHz network of silero-vad. Rows are windows of different streams."""

    def __init__(self, network: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, audio: torch.Tensor, context: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The probability of speech, [B,1], in 512 samples each, [B,512]; then the context, [B,64],
        and the state, [B,2,128], that go with the next window. Both are zeros for the first."""
        heard = torch.cat((context, audio), 1)
        probability, after = self.network(heard, state.transpose(0, 1))
        # What the network looks at again, with the next window.
        return probability, heard[:, -64:], after.transpose(0, 1)


def load_speech_stream(source: Path) -> torch.jit.ScriptModule:
    """The network in a `silero_vad.jit`, ready to be saved as TorchScript."""
    whole = torch.jit.load(source, map_location="cpu")  # type: ignore[no-untyped-call]
    network = whole.eval()._model  # noqa: SLF001 - the network for 16 kHz has no public name
    scripted: torch.jit.ScriptModule = torch.jit.script(SpeechStream(network).eval())
    return scripted
