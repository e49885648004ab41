"""The files of a front end that is served over TLS."""

import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from microkernel import InvalidArgument, TlsFiles

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="the command openssl is missing"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two certificates, the key of the first also locked, and a file of text."""
    folder = tmp_path_factory.mktemp("tls")
    for name in ("own", "other"):
        _openssl(
            folder,
            f"req -x509 -subj /CN={name} -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes "
            f"-keyout {name}.key -out {name}.crt",
        )
    _openssl(folder, "ec -in own.key -aes256 -passout pass:x -out locked.key")
    (folder / "text").write_text("no certificate")
    return folder


def _openssl(folder: Path, command: str) -> None:
    subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)


def files(folder: Path, *, mutual: bool = False, **names: str) -> TlsFiles:
    given = {"certificate": "own.crt", "key": "own.key", **names}
    paths = {key: str(folder / name) if name else "" for key, name in given.items()}
    return TlsFiles("--some", **paths, mutual=mutual)


@pytest.mark.parametrize(
    ("names", "mode"),
    [
        ({}, ssl.CERT_NONE),
        ({"roots": "other.crt"}, ssl.CERT_NONE),
        ({"roots": "other.crt", "mutual": True}, ssl.CERT_REQUIRED),
    ],
)
def test_clients_need_a_certificate_only_where_that_is_asked_for(
    folder: Path, names: dict[str, Any], mode: ssl.VerifyMode
) -> None:
    context = files(folder, **names).context()
    assert context.verify_mode is mode
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ({"certificate": ""}, "--some-server-cert must name a PEM file when serving over TLS"),
        ({"key": ""}, "--some-server-key must name a PEM file"),
        ({"mutual": True}, "--some-root-cert must name a PEM file"),
        ({"certificate": "absent"}, "--some-server-cert: cannot read '.*absent': No such file"),
        ({"key": "absent"}, "--some-server-key: cannot read '.*absent': No such file"),
        ({"roots": "absent"}, "--some-root-cert: cannot read '.*absent': No such file"),
        ({"roots": "."}, "--some-root-cert: cannot read '.*': Is a directory"),
        ({"key": "other.key"}, "--some-server-key '.*other.key' must be a certificate and its"),
        ({"key": "locked.key"}, "--some-server-key '.*locked.key' must be .* unencrypted key"),
        ({"certificate": "text"}, "--some-server-cert '.*text' and --some-server-key"),
        ({"roots": "text"}, "--some-root-cert '.*text' must hold certificates in PEM form"),
    ],
)
@pytest.mark.parametrize("ask", [TlsFiles.context, TlsFiles.contents])
def test_a_file_of_no_use_is_named_with_its_flag(
    folder: Path, names: dict[str, Any], text: str, ask: Any
) -> None:
    with pytest.raises(InvalidArgument, match=text):
        ask(files(folder, **names))
