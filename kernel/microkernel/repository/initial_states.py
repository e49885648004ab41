"""What the states of a model's sequences are before the first request, as its configuration and its
directory tell."""

from collections.abc import Mapping
from pathlib import Path

from microkernel.config.model import InitialState, ModelConfig
from microkernel.config.tensors import states_of
from microkernel.errors import InvalidArgument
from microkernel.tensor import BY_CONFIG_NAME, BYTES, DataType, Tensor, decode_bytes, element_count

FOLDER = "initial_state"


def read_initial_states(config: ModelConfig, directory: Path) -> Mapping[str, Tensor]:
    """The tensors that `initial_state` of a valid configuration describes, by the name of the
    state's input, with the batch dimension where the model batches.

    Raises InvalidArgument for a file outside the model's folder for them, for one that cannot be
    read, and for one that holds too little.
    """
    lead = (1,) if config.max_batch_size > 0 else ()
    found = {}
    for state in states_of(config):
        for initial in state.initial_state[:1]:
            datatype = BY_CONFIG_NAME[state.data_type]
            data = _data(state.input_name, initial, datatype, directory)
            shape = (*lead, *initial.dims)
            found[state.input_name] = Tensor(state.input_name, datatype, shape, data)
    return found


def _data(state: str, initial: InitialState, datatype: DataType, directory: Path) -> bytes:
    count = element_count(initial.dims)
    if initial.data_file is None:
        return bytes(count * (datatype.size or 4))
    data = _read(state, initial.data_file, directory / FOLDER)
    if datatype is BYTES:
        elements = len(decode_bytes(data, state))
        if elements != count:
            raise InvalidArgument(
                f"initial state '{initial.name}' of state '{state}' should hold {count} strings, "
                f"'{initial.data_file}' holds {elements}"
            )
        return data
    expected = count * datatype.size
    if len(data) < expected:
        raise InvalidArgument(
            f"initial state '{initial.name}' of state '{state}' expects {expected} bytes, but the "
            f"data provided in '{initial.data_file}' has {len(data)}"
        )
    return data[:expected]


def _read(state: str, name: str, folder: Path) -> bytes:
    root = folder.resolve()
    path = (root / name).resolve()
    if root not in path.parents:
        raise InvalidArgument(
            f"file '{name}' of the initial state of '{state}' lies outside the folder '{root}'"
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidArgument(
            f"file '{name}' of the initial state of '{state}' cannot be read: {error.strerror}"
        ) from None
