"""What a configuration says of one tensor of a `.pt2`, against what its file tells."""

from collections.abc import Sequence

from microkernel import Internal, InvalidArgument, ModelConfig, ModelInput, ModelOutput, inner_dims
from microkernel_torchscript.conversion import STRING, TORCH_TYPES
from microkernel_torchscript.exported.leaves import Leaf, Leaves, Size, shape_text


def check_type(direction: str, entry: ModelInput | ModelOutput, config: ModelConfig) -> None:
    """Internal, in Triton's words, for a type that no tensor of torch has; `direction` is `input`
    or `output`."""
    if entry.data_type not in TORCH_TYPES:
        raise Internal(
            f'Unsupported datatype {entry.data_type} for {direction} "{entry.name}" for model '
            f'instance "{config.name}".'
            + (" A .pt2 takes and gives tensors only." if entry.data_type == STRING else "")
        )


def check_input(config: ModelConfig, entry: ModelInput, leaf: Leaf) -> None:
    """InvalidArgument or Internal where an input cannot feed an argument."""
    check_type("input", entry, config)
    if leaf.kind == "int" and (config.max_batch_size > 0 or "INT" not in entry.data_type):
        raise InvalidArgument(
            f"unable to load model '{config.name}', input '{entry.name}' feeds an argument of type "
            "int, which has one value for a whole batch: it needs a type of whole numbers and a "
            "max_batch_size of 0"
        )
    if leaf.kind == "tensor":
        _check_entry(config, entry, leaf, "input")


def check_output(config: ModelConfig, entry: ModelOutput, leaf: Leaf) -> None:
    """InvalidArgument or Internal where a result cannot be an output."""
    check_type("output", entry, config)
    if leaf.kind != "tensor":
        raise InvalidArgument(
            f"unable to load model '{config.name}', output '{entry.name}' refers to a result that "
            "is not a tensor"
        )
    scattered = any(entry.name in batch.target_name for batch in config.batch_output)
    if not scattered:
        _check_entry(config, entry, leaf, "output")


def _check_entry(
    config: ModelConfig, entry: ModelInput | ModelOutput, leaf: Leaf, direction: str
) -> None:
    start = f"unable to load model '{config.name}', "
    if leaf.data_type not in (None, entry.data_type):
        raise InvalidArgument(
            f"{start}configuration expects datatype {entry.data_type} for {direction} "
            f"'{entry.name}', model provides {leaf.data_type}"
        )
    if leaf.sizes is None or (isinstance(entry, ModelInput) and entry.allow_ragged_batch):
        return
    if config.max_batch_size > 0 and leaf.sizes:
        check_batch(config, entry.name, leaf.sizes[0], direction)
    dims = inner_dims(entry)
    shape = (-1, *dims) if config.max_batch_size > 0 else dims
    if not _fits(leaf.sizes, shape):
        raise InvalidArgument(
            f"{start}{direction} '{entry.name}' has shape {list(shape)} in the configuration, "
            f"model provides {shape_text(leaf.sizes)}"
        )


def _fits(sizes: Sequence[Size], shape: Sequence[int]) -> bool:
    pairs = zip(sizes, shape, strict=False)
    return len(sizes) == len(shape) and all(dim < 0 or size.admits(dim) for size, dim in pairs)


def check_batch(config: ModelConfig, name: str, size: Size, direction: str) -> None:
    """InvalidArgument, naming both, where a program does not take batches of 1 to `max_batch_size`;
    `size` is the first of the tensor `name`."""
    limit = config.max_batch_size
    if size.admits(1) and size.admits(limit):
        return
    cure = f"set max_batch_size to {size.high}" if size.admits(1) else "set max_batch_size to 0"
    raise InvalidArgument(
        f"unable to load model '{config.name}', max_batch_size is {limit}, but the program was "
        f"exported for batches of {size} ({direction} '{name}'): {cure}, or export it with a first "
        f"dimension that may be 1 to {limit}"
    )


def batch_limit(leaves: Leaves) -> tuple[int | None, int]:
    """The largest batch that every argument takes, None where there is no limit or it is not
    known, and the argument that limits it."""
    highs = [
        (leaf.sizes[0].high, place)
        for place, leaf in enumerate(leaves)
        if leaf.kind == "tensor" and leaf.sizes
    ]
    limits = [(high, place) for high, place in highs if high is not None]
    return min(limits, default=(None, 0))
