"""What lies on disk."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from microkernel.config.model import All, Latest, Specific, VersionPolicy
from microkernel.errors import InvalidArgument
from microkernel.repository.store import (
    Seen,
    config_path,
    find_models,
    fingerprint,
    look,
    missing,
    select,
    versions,
)

LATEST_2 = VersionPolicy(latest=Latest(2))
LISTED = VersionPolicy(specific=Specific((7, 2, 9)))


def folders(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
    return root


def test_models_are_the_directories_of_all_repositories(tmp_path: Path) -> None:
    one, two = folders(tmp_path / "one", "b", "a"), folders(tmp_path / "two", "c")
    (one / "note.txt").write_text("no model")
    found = find_models([one, two])
    assert list(found.models) == ["a", "b", "c"]
    assert found.models["c"] == two / "c"
    assert found.duplicates == {}


def test_a_name_in_two_repositories_is_no_model_but_a_duplicate(tmp_path: Path) -> None:
    one, two = folders(tmp_path / "one", "a", "b"), folders(tmp_path / "two", "b")
    found = find_models([one, two])
    assert list(found.models) == ["a"]
    assert found.duplicates == {"b": (one / "b", two / "b")}


def test_a_repository_given_twice_counts_once(tmp_path: Path) -> None:
    one = folders(tmp_path / "one", "a")
    (tmp_path / "link").symlink_to(one)
    found = find_models([one, one, tmp_path / "link"])
    assert list(found.models) == ["a"]
    assert found.duplicates == {}


def test_a_linked_directory_is_a_model(tmp_path: Path) -> None:
    real, repository = folders(tmp_path, "real", "repository") / "real", tmp_path / "repository"
    (repository / "a").symlink_to(real)
    assert find_models([repository]).models == {"a": repository / "a"}


@pytest.mark.parametrize("name", ["absent", "file"])
def test_a_repository_that_is_no_directory_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgument, match=f"failed to read the directory '.*/{name}': "):
        find_models([tmp_path, tmp_path / name])


def test_versions_are_numbers_in_ascending_order(tmp_path: Path) -> None:
    folders(tmp_path, "10", "2", "0", "1", "warmup", "initial_state", "configs")
    (tmp_path / "3").write_text("a file")
    found = versions(tmp_path)
    assert found.found == [0, 1, 2, 10]
    assert found.warnings == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("01", "leading zeros"),
        ("00", "leading zeros"),
        ("abc", "not an integer >= 0"),
        ("1_0", "not an integer >= 0"),
        ("-1", "not an integer >= 0"),
        ("1.5", "not an integer >= 0"),
        ("²", "not an integer >= 0"),
        (".git", "not an integer >= 0"),
        ("9223372036854775808", "does not fit 64 bits"),
        ("9" * 200, "does not fit 64 bits"),
    ],
)
def test_other_directories_are_passed_over_with_a_warning(
    tmp_path: Path, name: str, reason: str
) -> None:
    found = versions(folders(tmp_path, "1", name))
    assert found.found == [1]
    (warning,) = found.warnings
    assert f"'{tmp_path / name}'" in warning
    assert reason in warning


def test_the_largest_version_is_taken(tmp_path: Path) -> None:
    assert versions(folders(tmp_path, "9223372036854775807")).found == [2**63 - 1]


@pytest.mark.parametrize(
    ("found", "policy", "wanted"),
    [
        ([1, 10, 2], None, [10]),
        ([], None, []),
        ([1, 10, 2], LATEST_2, [2, 10]),
        ([1], LATEST_2, [1]),
        ([1, 2], VersionPolicy(latest=Latest()), []),
        ([1, 10, 2], VersionPolicy(all=All()), [1, 2, 10]),
        ([1, 2, 7], LISTED, [2, 7]),
        ([1], LISTED, []),
        ([2, 1], VersionPolicy(), [1, 2]),
    ],
)
def test_a_policy_selects(
    found: list[int], policy: VersionPolicy | None, wanted: list[int]
) -> None:
    assert select(found, policy) == wanted


@pytest.mark.parametrize(
    ("found", "policy", "wanted"),
    [([2, 3], LISTED, [7, 9]), ([2, 7, 9], LISTED, []), ([1], LATEST_2, []), ([], None, [])],
)
def test_listed_versions_without_a_directory_are_missing(
    found: list[int], policy: VersionPolicy | None, wanted: list[int]
) -> None:
    assert missing(found, policy) == wanted


def test_the_named_configuration_goes_before_the_plain_one(tmp_path: Path) -> None:
    assert config_path(tmp_path) is None
    assert config_path(tmp_path, "h100") is None
    plain = tmp_path / "config.pbtxt"
    plain.write_text("")
    assert config_path(tmp_path, "h100") == plain
    special = folders(tmp_path, "configs") / "configs" / "h100.pbtxt"
    special.write_text("")
    assert config_path(tmp_path, "h100") == special
    assert config_path(tmp_path, "other") == plain
    assert config_path(tmp_path) == plain


def _age(path: Path) -> None:
    stamp = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(stamp, stamp))


CHANGES: dict[str, Callable[[Path], object]] = {
    "a file is written": lambda model: (model / "1" / "model.pt").write_text("longer than before"),
    "a file is written in place": lambda model: _age(model / "1" / "model.pt"),
    "a file is added": lambda model: (model / "labels.txt").touch(),
    "a file is removed": lambda model: (model / "1" / "model.pt").unlink(),
    "a version is added": lambda model: (model / "2").mkdir(),
    "a version is removed": lambda model: shutil.rmtree(model / "1"),
    "a file behind a link": lambda model: _age(model.parent / "shared" / "weights"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_a_model(tmp_path: Path, change: str) -> None:
    model = folders(tmp_path / "m", "1")
    (model / "1" / "model.pt").write_text("before")
    folders(tmp_path, "shared")
    (tmp_path / "shared" / "weights").touch()
    (model / "shared").symlink_to(tmp_path / "shared")
    before = fingerprint(model)
    assert fingerprint(model) == before
    CHANGES[change](model)
    assert fingerprint(model) != before


def test_what_python_compiles_is_no_change(tmp_path: Path) -> None:
    model = folders(tmp_path / "m", "1/__pycache__")
    before = fingerprint(model)
    (model / "1" / "__pycache__" / "model.pyc").touch()
    assert fingerprint(model) == before


def test_links_without_end_are_followed_once(tmp_path: Path) -> None:
    model = folders(tmp_path / "m", "1")
    (model / "1" / "again").symlink_to(model)
    before = fingerprint(model)
    (model / "file").touch()
    assert fingerprint(model) != before


def test_a_link_that_leads_nowhere_is_no_fault(tmp_path: Path) -> None:
    model = folders(tmp_path / "m", "1")
    (model / "broken").symlink_to(tmp_path / "nowhere")
    assert fingerprint(model) == fingerprint(model)


def test_a_look_tells_models_and_duplicates(tmp_path: Path) -> None:
    one, two = folders(tmp_path / "one", "a", "b"), folders(tmp_path / "two", "b")
    assert look([one, two]) == {"a": Seen(fingerprint(one / "a")), "b": Seen(0, duplicated=True)}
    with pytest.raises(InvalidArgument, match="failed to read the directory"):
        look([one, tmp_path / "three"])
