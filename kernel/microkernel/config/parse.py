"""`config.pbtxt` to the dataclasses, through protobuf's own text parser."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from microkernel.config.codec import config_from_json
from microkernel.config.model import ModelConfig
from microkernel.config.proto import config_message
from microkernel.errors import InvalidArgument

# Nothing is given back once it has matched, for to be able to takes 130 bytes for each character.
_STRINGS_AND_COMMENTS = re.compile(r""""(?:\\.|[^"\\\n]++)*+"|'(?:\\.|[^'\\\n]++)*+'|#[^\n]*+""")
_FIELD = re.compile(r"[A-Za-z_]\w*(?=\s*(?:[:{<]|\Z))")
_NAMES_A_FIELD = re.compile(r'[Ff]ield(?: named)? "|multiple "\w+" fields')


def parse_text(text: str, source: str) -> ModelConfig:
    """The configuration written in `text`. `source` says in messages where the text comes from.

    Raises InvalidArgument naming source, line, column and field for what is not a configuration.
    """
    message = config_message()()
    try:
        text_format.Parse(text, message)
        return config_from_json(_members(message))
    except text_format.ParseError as error:
        raise InvalidArgument(
            f"failed to read text proto from {source}: {_explain(error, text)}"
        ) from None
    except (InvalidArgument, ValueError) as error:  # a number beyond those of any enumeration
        raise InvalidArgument(f"failed to read text proto from {source}: {error}") from None


def read_config(path: Path) -> ModelConfig:
    """The configuration in a file. Raises InvalidArgument naming the file where it cannot be read,
    is not UTF-8 or is no configuration."""
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        reason = error.strerror or str(error)
        raise InvalidArgument(f"failed to read text proto from {path}: {reason}") from None
    except UnicodeDecodeError as error:
        raise InvalidArgument(
            f"failed to read text proto from {path}: byte {error.start} is not UTF-8 text"
        ) from None
    return parse_text(text, str(path))


def _members(message: Message) -> dict[str, Any]:
    """What a message holds by field name. Fields at their default are left out, set members of a
    oneof and present messages are not."""
    return {field.name: _plain(field, value) for field, value in message.ListFields()}


def _plain(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entry = field.message_type.fields_by_name["value"]
        return {key: _plain_one(entry, value[key]) for key in value}
    if isinstance(value, Message | str | bool | int | float):
        return _plain_one(field, value)
    return [_plain_one(field, each) for each in value]


def _plain_one(field: FieldDescriptor, value: Any) -> Any:
    if isinstance(value, Message):
        return _members(value)
    if field.enum_type is not None:
        word = field.enum_type.values_by_number.get(value)
        return value if word is None else word.name
    if field.type == FieldDescriptor.TYPE_FLOAT:
        # A 32-bit float read as a 64-bit one shows digits that nobody wrote: 0.1 stays 0.1.
        return float(str(np.float32(value)))
    return value


def _explain(error: text_format.ParseError, text: str) -> str:
    """Place, reason, and the field being read where the reason does not name one."""
    line, column = error.GetLine(), error.GetColumn()
    if line is None or column is None:
        return str(error)
    lines = text.split("\n")
    reason = str(error).removeprefix(f"{line}:{column} : ")
    for quoted in (lines[line - 1], ""):
        reason = reason.removeprefix(f"'{quoted}': ")
    before = "\n".join([*lines[: line - 1], lines[line - 1][: column - 1]])
    return f"line {line}, column {column}: {reason}{_near(reason, before)}"


def _near(reason: str, before: str) -> str:
    fields = _FIELD.findall(_STRINGS_AND_COMMENTS.sub(" ", before))
    if not fields or _NAMES_A_FIELD.search(reason):
        return ""
    return f" (near field '{fields[-1]}')"
