"""Which cache the server gets, and what is wrong with those that it cannot get."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from microkernel import Cache, InvalidArgument
from microkernel.cache_config import CacheChoice, parse_cache_config
from microkernel.caching.opening import open_cache
from microkernel.hookspecs import ENTRY_POINT_GROUP
from microkernel.plugins import discover
from microkernel_local_cache.cache import LocalCache

STRANGER = """
    from dataclasses import dataclass
    from microkernel import Cache, CacheType, hookimpl, option

    class Forgetful(Cache):
        def __init__(self, *settings):
            self.settings = settings

        async def lookup(self, key):
            return None

        async def insert(self, key, value):
            pass

    @hookimpl
    def register_caches(register):
        register(CacheType("plain", "a_stranger_s_cache:Forgetful"))
        register(CacheType("broken", "a_stranger_s_cache:NoSuchThing"))
        register(CacheType("absent", "no_such_module:Cache"))
        register(CacheType("leaving", "a_stranger_s_cache:leave"))

    def leave():
        raise SystemExit("I quit")
"""
SETTINGS = """
    @dataclass(frozen=True, slots=True)
    class Settings:
        depth: int = option(1, about="How deep.")
        deep_end: bool = option(False, about="Where.")
        share: float = option(0.5, about="How much.")
        names: tuple[str, ...] = option((), about="Who.", many=True)

    @hookimpl
    def register_options(register):
        register(Settings)
"""


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`stranger(source)`: a distribution that brings caches."""

    def install(source: str) -> None:
        info = tmp_path / "site" / "stranger-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
        text = f"[{ENTRY_POINT_GROUP}]\nstranger = a_stranger_s_cache\n"
        (info / "entry_points.txt").write_text(text)
        (tmp_path / "site" / "a_stranger_s_cache.py").write_text(textwrap.dedent(source))
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        monkeypatch.delitem(__import__("sys").modules, "a_stranger_s_cache", raising=False)

    return install


def opened(*entries: str, byte_size: int = 0, file: Path | None = None) -> Cache:
    choice = parse_cache_config(entries, byte_size)
    assert choice is not None
    return open_cache(choice, discover(file), {})


@pytest.mark.parametrize(
    ("entries", "byte_size", "found"),
    [
        ((), 0, None),
        (("local,size=5",), 0, CacheChoice("local", {"size": "5"})),
        ((), 5, CacheChoice("local", {"size": "5"})),
        (("r,a=1", "r,b=x,y=z"), 0, CacheChoice("r", {"a": "1", "b": "x,y=z"})),
        (("r,a=1", "r,a=2"), 0, CacheChoice("r", {"a": "2"})),
        (("r,a=",), 0, CacheChoice("r", {"a": ""})),
    ],
)
def test_what_is_asked_for(
    entries: Sequence[str], byte_size: int, found: CacheChoice | None
) -> None:
    assert parse_cache_config(entries, byte_size) == found


@pytest.mark.parametrize(
    ("entries", "byte_size", "message"),
    [
        (
            ["local,size=1048576"],
            1048576,
            "Incompatible flags --response-cache-byte-size and --cache-config both provided. "
            "Please provide one or the other.",
        ),
        (
            ["local,size=1048576", "redis,port=1"],
            0,
            "found multiple cache configurations, but only a single cache is currently supported",
        ),
        (["local"], 0, "--cache-config must be <name>,<key>=<value>, got 'local'"),
        (["size=1"], 0, "--cache-config must be <name>,<key>=<value>, got 'size=1'"),
        (["disk,size=1"], 0, "--cache-config: there is no cache 'disk'; there are local, redis"),
        (["local,size=10"], 0, "--cache-config local: 'size' must be at least 1024, got 10"),
        (["local,size=0"], 0, "--cache-config local: 'size' must be at least 1024, got 0"),
        ([], 10, "--cache-config local: 'size' must be at least 1024, got 10"),
        (["local,size=1G"], 0, "--cache-config local,size: the value must be of type int"),
        (
            ["local,speed=1"],
            0,
            "--cache-config: the cache 'local' has no setting 'speed'; there are size",
        ),
        (
            ["redis,port=6379"],
            0,
            "the cache 'redis' needs a host and a port, as in --cache-config=redis,host=HOST "
            "--cache-config=redis,port=6379",
        ),
        (
            ["redis,port=0", "redis,host=a"],
            0,
            "--cache-config redis: 'port' must be from 1 to 65535, got 0",
        ),
        (
            ["redis,socket_timeout=0"],
            0,
            "--cache-config redis: 'socket_timeout' must be at least 1, got 0",
        ),
    ],
)
def test_what_cannot_be(entries: Sequence[str], byte_size: int, message: str) -> None:
    if entries and entries[0].startswith("redis"):
        pytest.importorskip("redis", reason="the extra 'redis' is missing")
    with pytest.raises(InvalidArgument) as caught:
        opened(*entries, byte_size=byte_size)
    assert str(caught.value) == message


def test_the_file_gives_settings_and_the_flag_beats_it(tmp_path: Path) -> None:
    file = tmp_path / "operator.toml"
    file.write_text("[plugins.local_cache]\nsize = 5000\n")
    cache = opened("local,size=6000", file=file)
    assert isinstance(cache, LocalCache)
    assert cache._size == 6000
    choice = CacheChoice("local", {})
    from_file = open_cache(choice, discover(file), {})
    assert isinstance(from_file, LocalCache)
    assert from_file._size == 5000


def test_a_cache_that_is_switched_off_is_none(tmp_path: Path) -> None:
    file = tmp_path / "operator.toml"
    file.write_text("[plugins.local_cache]\nenabled = false\n")
    with pytest.raises(InvalidArgument, match="no cache 'local'; there are redis"):
        opened("local,size=6000", file=file)


def test_a_stranger_s_cache(stranger: Any) -> None:
    stranger(STRANGER + SETTINGS)
    entries = ("plain,depth=3", "plain,deep-end=on", "plain,share=0.25", "plain,names=a,b")
    cache: Any = opened(*entries)
    [settings] = cache.settings
    assert (settings.depth, settings.deep_end, settings.share) == (3, True, 0.25)
    assert settings.names == ("a,b",)
    plugin = next(plugin for plugin in discover().all if plugin.name == "stranger")
    assert plugin.kind == "cache"


def test_a_stranger_s_cache_without_settings(stranger: Any) -> None:
    stranger(STRANGER)
    choice = CacheChoice("plain", {})
    cache: Any = open_cache(choice, discover(), {})
    assert cache.settings == ()
    with pytest.raises(InvalidArgument, match="has no setting 'depth'; there are none"):
        opened("plain,depth=3")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("broken", "AttributeError: module 'a_stranger_s_cache' has no attribute 'NoSuchThing'"),
        ("absent", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("leaving", "SystemExit: I quit"),
    ],
)
def test_a_cache_that_cannot_be_made(stranger: Any, name: str, reason: str) -> None:
    stranger(STRANGER)
    with pytest.raises(InvalidArgument) as caught:
        open_cache(CacheChoice(name, {}), discover(), {})
    assert str(caught.value) == f"--cache-config: the cache '{name}' cannot be made: {reason}"


def test_what_a_cache_lacks_is_named(stranger: Any) -> None:
    stranger(STRANGER.replace('"no_such_module:Cache"', '"x:Y", ("no_such_module",), "deep"'))
    with pytest.raises(InvalidArgument) as caught:
        open_cache(CacheChoice("plain", {}), discover(), {})
    assert str(caught.value) == (
        "--cache-config: the cache 'plain' needs no_such_module: pip install 'stranger[deep]'"
    )
