"""The configuration that a person has to finish, as text to paste."""

from dataclasses import replace
from pathlib import Path

from microkernel import InvalidArgument, ModelConfig, ModelInput, Reshape, config_to_text
from microkernel_torchscript.signature import Argument, Signature

NUMBER_TYPES = {"int": "TYPE_INT64", "float": "TYPE_FP32", "bool": "TYPE_BOOL"}
"""What an argument of each kind is fed from where nobody has chosen a type."""


def unfinished(
    config: ModelConfig, signature: Signature, path: Path, lacking: str
) -> InvalidArgument:
    """The error where a configuration cannot be completed: what is `lacking` in the model's file
    `path`, and a `skeleton` to write beside it."""
    return InvalidArgument(
        f"unable to complete the configuration of model '{config.name}': {lacking}. Write "
        f"'{path.parent.parent / 'config.pbtxt'}' like this and fill in what is marked:\n\n"
        f"{skeleton(config, signature)}"
    )


def skeleton(config: ModelConfig, signature: Signature) -> str:
    """A `config.pbtxt` with the names that the signature tells. What a person has to fill in is
    marked `# fill in`; what the configuration lists already stands as it is."""
    parts = [config_to_text(replace(config, input=(), output=()))]
    if config.input:
        parts.append(config_to_text(ModelConfig(input=config.input)))
    elif signature.takes_dictionary:
        parts.append(_entry(config, "input", "KEY", "a key of the dictionary; one entry per key"))
    else:
        parts += [_input(config, argument) for argument in signature.arguments]
    if config.output:
        parts.append(config_to_text(ModelConfig(output=config.output)))
    elif signature.returns_dictionary:
        parts.append(_entry(config, "output", "KEY", "a key of the result; one entry per key"))
    else:
        parts += [_entry(config, "output", f"OUTPUT__{i}") for i in range(signature.returned)]
    return "".join(part for part in parts if part.strip())


def _input(config: ModelConfig, argument: Argument) -> str:
    batching = config.max_batch_size > 0
    if argument.kind in NUMBER_TYPES:
        entry = ModelInput(argument.name, NUMBER_TYPES[argument.kind], dims=(1,))
    elif argument.type_name.startswith("str[]") and batching:
        entry = ModelInput(argument.name, "TYPE_STRING", dims=(1,), reshape=Reshape())
    elif argument.type_name.startswith("str[]"):
        entry = ModelInput(argument.name, "TYPE_STRING", dims=(-1,))
    else:
        return _entry(config, "input", argument.name, optional=argument.optional)
    return config_to_text(ModelConfig(input=(replace(entry, optional=argument.optional),)))


def _entry(
    config: ModelConfig, field: str, name: str, about_name: str = "", *, optional: bool = False
) -> str:
    batch = " without the batch dimension" if config.max_batch_size > 0 else ""
    mark = f"  # fill in: {about_name}" if about_name else ""
    last = "  optional: true\n" if optional else ""
    return (
        f"{field} {{\n"
        f'  name: "{name}"{mark}\n'
        "  data_type: TYPE_FP32  # fill in: its type\n"
        f"  dims: [ ]  # fill in: its shape{batch}, -1 where a size varies\n"
        f"{last}}}\n"
    )
