"""Who may call."""

from pathlib import Path

import pytest

from microkernel import AccessKeys, InvalidArgument

KEY, OTHER = "0123456789abcdef", "fedcba9876543210"


@pytest.mark.parametrize(
    ("authorization", "api_key", "admitted"),
    [
        (f"Bearer {KEY}", "", True),
        (f"bearer   {OTHER}", "", True),
        ("", KEY, True),
        ("Bearer wrong", OTHER, True),
        ("", "", False),
        ("Bearer", "", False),
        (f"Basic {KEY}", "", False),
        (KEY, "", False),
        (f"Bearer {KEY}0", "", False),
        ("", KEY[:-1], False),
        ("Bearer \udcff", "\udcff", False),
    ],
)
def test_a_key_opens_as_token_or_as_api_key(
    authorization: str, api_key: str, admitted: bool
) -> None:
    assert AccessKeys([KEY, OTHER]).admits(authorization, api_key) is admitted


def test_without_keys_everybody_may_call() -> None:
    keys = AccessKeys.read("", "--http-auth-file")
    assert not keys
    assert keys.admits()


def test_a_file_holds_a_key_a_line(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# of the dashboards\n\n  {KEY}\n{OTHER}\n")
    keys = AccessKeys.read(str(file), "--http-auth-file")
    assert keys
    assert keys.admits(api_key=KEY)
    assert keys.admits(api_key=OTHER)
    assert not keys.admits(api_key="# of the dashboards")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"# nothing\n", "holds no key"),
        (b"\nshort\n", "line 2 of '.*' must be a key of at least 16"),
        (b"0123456789 abcdef\n", "without blanks"),
        (b"\xff\xfe\n", "it is no text"),
        (None, "No such file"),
    ],
)
def test_a_file_of_no_use_is_named(tmp_path: Path, content: bytes | None, words: str) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidArgument, match=f"^--grpc-auth-file: .*{words}"):
        AccessKeys.read(str(file), "--grpc-auth-file")
