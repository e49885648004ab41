"""What the words of the command line mean. Pure, and without torch."""

import ast
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from microkernel import BY_CONFIG_NAME, InvalidArgument, label_lines

Format: TypeAlias = Literal["script", "trace", "export", "aoti"]
"""TorchScript by `torch.jit.script` or `torch.jit.trace`; a program of `torch.export`; a package
that AOTInductor compiles from one."""

FORMATS: Sequence[Format] = get_args(Format)
_SUFFIXES: Mapping[str, tuple[Format, ...]] = {
    ".pt": ("script", "trace"),
    ".pt2": ("export", "aoti"),
}
"""What a file of each suffix may be, the default first."""

_ALIASES: Mapping[str, str] = {
    "float": "FP32",
    "float32": "FP32",
    "float64": "FP64",
    "double": "FP64",
    "float16": "FP16",
    "half": "FP16",
    "bfloat16": "BF16",
    "int": "INT64",
    "long": "INT64",
    "str": "STRING",
}
"""Other words for types, as torch and Python have them."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input: its name, its type as a configuration writes it, and the shape that the module
    sees, -1 where a size varies."""

    name: str
    data_type: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be exported, beside the module: its format, its inputs, the names of its outputs
    in order where they are to have others, how many rows of requests may be batched (0 for none),
    and the labels of outputs by name."""

    form: Format
    inputs: tuple[InputSpec, ...]
    output_names: tuple[str, ...] = ()
    max_batch_size: int = 0
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises InvalidArgument where inputs or outputs share a name, and where an input of a
        model that batches has no first dimension that varies."""
        _refuse_twice("input", [spec.name for spec in self.inputs])
        _refuse_twice("output", self.output_names)
        for spec in self.inputs if self.max_batch_size > 0 else ():
            if spec.shape[0] != -1:
                raise InvalidArgument(
                    f"input '{spec.name}' has the shape {list(spec.shape)}, but with "
                    "--max-batch-size the first dimension of every input is the batch's: write -1"
                )


def input_spec(text: str) -> InputSpec:
    """The input that `NAME:TYPE:DIMS` describes, as in `image:fp32:-1,3,224,224`. Raises
    InvalidArgument saying what is wrong with it."""
    name, datatype, dims = _thirds(text)
    word = datatype.lower().removeprefix("type_")
    data_type = f"TYPE_{_ALIASES.get(word, word.upper())}"
    if data_type not in BY_CONFIG_NAME:
        known = ", ".join(row.removeprefix("TYPE_").lower() for row in BY_CONFIG_NAME)
        raise InvalidArgument(f"--input '{text}': '{datatype}' is no type; there are {known}")
    try:
        shape = tuple(int(dim) for dim in dims.split(","))
    except ValueError:
        shape = (0,)
    if any(dim < 1 and dim != -1 for dim in shape):
        raise InvalidArgument(
            f"--input '{text}': '{dims}' is no shape; write sizes with commas between them, -1 for "
            "one that varies"
        )
    return InputSpec(name, data_type, shape)


def format_of(path: Path, asked: Format | None) -> Format:
    """The format of a file, which its suffix tells where none is asked for. Raises InvalidArgument
    for another suffix than `.pt` and `.pt2`, and for a format that the suffix does not fit."""
    fitting = _SUFFIXES.get(path.suffix)
    if fitting is None:
        raise InvalidArgument(
            f"'{path}' must end in .pt, for TorchScript, or in .pt2, for torch.export"
        )
    if asked is None:
        return fitting[0]
    if asked not in fitting:
        suffix = next(s for s, formats in _SUFFIXES.items() if asked in formats)
        raise InvalidArgument(f"a file of the format {asked} must end in {suffix}, not '{path}'")
    return asked


def arguments_of(texts: Iterable[str]) -> dict[str, Any]:
    """Keyword arguments from `NAME=VALUE`, where a value that is a Python literal is one and any
    other is text. Raises InvalidArgument."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise InvalidArgument(f"--arg '{text}' must have the form NAME=VALUE")
        if name in found:
            raise InvalidArgument(f"--arg '{name}' is given twice")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            found[name] = value
    return found


def labels_of(texts: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Labels by output from `OUTPUT=FILE`, where the file has one a line. Raises InvalidArgument
    for a file that cannot be read."""
    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not name or not path:
            raise InvalidArgument(f"--label '{text}' must have the form OUTPUT=FILE")
        if name in found:
            raise InvalidArgument(f"--label '{name}' is given twice")
        try:
            found[name] = label_lines(Path(path).read_bytes().decode())
        except OSError as error:
            raise InvalidArgument(f"--label '{path}' cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise InvalidArgument(f"--label '{path}' is not UTF-8 text") from None
    return found


def _thirds(text: str) -> tuple[str, str, str]:
    name, datatype, dims = (["", "", "", *text.rsplit(":", 2)])[-3:]
    if not name or not datatype or not dims:
        raise InvalidArgument(
            f"--input '{text}' must have the form NAME:TYPE:DIMS, as in image:fp32:-1,3,224,224"
        )
    return name, datatype, dims


def _refuse_twice(direction: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InvalidArgument(f"two {direction}s are called '{name}'")
