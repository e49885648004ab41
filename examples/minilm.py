"""The sentence encoder all-MiniLM-L6-v2 in plain torch, small enough to script, and the reading of
its published weights."""

import json
import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY = 30522
POSITIONS = 512
WIDTH = 384
INNER = 1536
HEADS = 12
LAYERS = 6
EPSILON = 1e-12

_DTYPES = {"F32": torch.float32, "I64": torch.int64}

# How the published names read here, applied in this order.
_RENAMED = (
    (r"^embeddings\.(word|position|token_type)_embeddings\.weight$", r"\1.weight"),
    (r"^embeddings\.LayerNorm\.", r"norm."),
    (r"^encoder\.layer\.(\d+)\.", r"layers.\1."),
    (r"\.attention\.self\.(query|key|value)\.", r".\1."),
    (r"\.attention\.output\.dense\.", r".attended."),
    (r"\.attention\.output\.LayerNorm\.", r".attended_norm."),
    (r"\.intermediate\.dense\.", r".widen."),
    (r"\.output\.dense\.", r".narrow."),
    (r"\.output\.LayerNorm\.", r".narrow_norm."),
)
# The pooler serves another task, and the position numbers are counted where they are needed.
_UNUSED = ("pooler.", "embeddings.position_ids")


class Layer(nn.Module):
    """One encoder layer: attention between the tokens, then a feed-forward network."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.attended = nn.Linear(WIDTH, WIDTH)
        self.attended_norm = nn.LayerNorm(WIDTH, eps=EPSILON)
        self.widen = nn.Linear(WIDTH, INNER)
        self.narrow = nn.Linear(INNER, WIDTH)
        self.narrow_norm = nn.LayerNorm(WIDTH, eps=EPSILON)

    def split(self, vectors: Tensor) -> Tensor:
        """[B, T, 384] to one matrix per head, [B, 12, T, 32]."""
        batch, length = vectors.size(0), vectors.size(1)
        return vectors.view(batch, length, self.heads, -1).transpose(1, 2)

    def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
        """`hidden` [B, T, 384]; `bias` [B, 1, 1, T] is added to the scores of each token."""
        attended = functional.scaled_dot_product_attention(
            self.split(self.query(hidden)),
            self.split(self.key(hidden)),
            self.split(self.value(hidden)),
            attn_mask=bias,
        )
        attended = self.attended(attended.transpose(1, 2).flatten(2))
        hidden = self.attended_norm(attended + hidden)
        narrow = self.narrow(functional.gelu(self.widen(hidden)))
        result: Tensor = self.narrow_norm(narrow + hidden)
        return result


class MiniLM(nn.Module):
    """`input_ids` and `attention_mask` int64 [B, T], T at most 512, to `embedding` float32
    [B, 384]: the mean over the tokens whose mask is 1, scaled to length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = POSITIONS
        self.word = nn.Embedding(VOCABULARY, WIDTH)
        self.position = nn.Embedding(POSITIONS, WIDTH)
        self.token_type = nn.Embedding(2, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=EPSILON)
        self.layers = nn.ModuleList([Layer() for _ in range(LAYERS)])

    def embed(self, input_ids: Tensor) -> Tensor:
        """Token numbers [B, T] to vectors [B, T, 384]."""
        length = input_ids.size(1)
        if length > self.positions:
            raise ValueError(f"the model takes at most {self.positions} tokens, got {length}")
        vectors = self.word(input_ids) + self.position.weight[:length]
        result: Tensor = self.norm(vectors + self.token_type.weight[0])
        return result

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """One vector per row, each a unit vector."""
        mask = attention_mask.to(torch.float32)
        # A finite bias: with minus infinity a row without any token would become NaN.
        bias = (mask[:, None, None, :] - 1.0) * 1e9
        hidden = self.embed(input_ids)
        for layer in self.layers:
            hidden = layer(hidden, bias)
        weight = mask[:, :, None]
        mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        return functional.normalize(mean, p=2.0, dim=1)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name.

    Eight bytes give the length of a JSON header, which gives each tensor's type, shape and place in
    the rest of the file. Raises ValueError for a type other than F32 and I64.
    """
    raw = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    header.pop("__metadata__", None)
    return {name: _tensor(raw, start, name, entry) for name, entry in header.items()}


def _tensor(raw: bytearray, start: int, name: str, entry: dict[str, object]) -> Tensor:
    match entry:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            if kind not in _DTYPES:
                raise ValueError(f"tensor '{name}' has type {kind}, expected F32 or I64")
            dtype = _DTYPES[kind]
            count = (end - begin) // dtype.itemsize
            flat = torch.frombuffer(raw, dtype=dtype, count=count, offset=start + begin)
            return flat.reshape(shape)
    raise ValueError(f"the header entry of tensor '{name}' is not that of a safetensors file")


def renamed(name: str) -> str:
    """What a tensor of the published file is called in `MiniLM`, "" where it is not used."""
    if name.startswith(_UNUSED):
        return ""
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def load_minilm(weights: Path) -> MiniLM:
    """The encoder with its published weights, in evaluation mode. Raises RuntimeError naming every
    tensor that is missing, left over or of another shape."""
    model = MiniLM()
    tensors = {renamed(name): tensor for name, tensor in read_safetensors(weights).items()}
    tensors.pop("", None)
    model.load_state_dict(tensors)
    return model.eval()
