"""Responses in a real Redis: shared, outliving the server, and never a request's undoing."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cached_models import counted, run_of, write_counting
from redis_harness import LONG, RedisProcess
from server_harness import ADDRESS, PATIENCE, Running, in_threads, launch

from microkernel import InvalidArgument, Unavailable

pytest.importorskip("redis", reason="the extra 'redis' is missing")

from redis.exceptions import ResponseError

from microkernel_redis_cache import RedisSettings, cache
from microkernel_redis_cache.cache import PREFIX, RedisCache

KEY = bytes(range(32))


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    process = RedisProcess(tmp_path_factory.mktemp("redis"))
    yield process
    process.kill()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Callable[..., RedisProcess]]:
    """`own_redis("--requirepass", "x")`: one that the test may do anything to."""
    started: list[RedisProcess] = []

    def start(*flags: str) -> RedisProcess:
        (tmp_path / "redis").mkdir()
        started.append(RedisProcess(tmp_path / "redis", *flags))
        return started[0]

    yield start
    for process in started:
        process.kill()


def settings_of(process: RedisProcess, **others: Any) -> RedisSettings:
    times = {"connect_timeout": LONG, "socket_timeout": LONG}
    return RedisSettings(host=ADDRESS, port=process.port, **{**times, **others})


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    write_counting(tmp_path / "models", "counting")
    return tmp_path / "models"


@pytest.mark.slow
def test_two_servers_share_responses_and_a_restart_keeps_them(
    redis: RedisProcess, repository: Path, start_server: Callable[..., Running]
) -> None:
    one, other = (start_server(repository, *redis.config) for _ in range(2))
    assert [run_of(one, "counting", i) for i in (1, 2)] == [1, 2]
    assert [run_of(server, "counting", 2) for server in (one, other)] == [2, 2]
    assert counted(other, "counting")["cache_hit"] == 1
    assert one.stop() == other.stop() == 0
    again = start_server(repository, *redis.config)
    assert run_of(again, "counting", 2) == 2
    (repository / "counting" / "words.txt").write_text("which the model may read")
    changed = start_server(repository, *redis.config)
    assert run_of(changed, "counting", 2) == 1


def until_hit(server: Running, *values: int) -> None:
    """Ask until the answer comes from the cache."""
    before = counted(server, "counting")["cache_hit"]

    def is_hit() -> bool:
        run_of(server, "counting", *values)
        return counted(server, "counting")["cache_hit"] > before

    server.until(is_hit)


def test_without_redis_all_goes_on(
    own_redis: Callable[..., RedisProcess],
    repository: Path,
    start_server: Callable[..., Running],
) -> None:
    redis = own_redis()
    server = start_server(repository, *redis.config)
    assert [run_of(server, "counting", 1) for _ in range(2)] == [1, 1]
    redis.kill()
    answers = in_threads([partial(run_of, server, "counting", 1) for _ in range(8)])
    assert sorted(answers) == list(range(2, 10))
    gone = server.log.wait("redis is gone")
    assert gone["address"] == f"{ADDRESS}:{redis.port}"
    redis.start()
    server.log.wait("redis is back")
    until_hit(server, 1)
    assert counted(server, "counting")["fail"] == 0


@pytest.mark.slow
def test_a_redis_that_hangs_stalls_nobody(
    own_redis: Callable[..., RedisProcess],
    repository: Path,
    start_server: Callable[..., Running],
) -> None:
    redis = own_redis()
    server = start_server(repository, *redis.hasty_config)
    run_of(server, "counting", 1)
    redis.freeze()
    calls = [partial(run_of, server, "counting", 1) for _ in range(40)]
    assert sorted(in_threads(calls)) == list(range(2, 42))
    server.log.wait("redis is gone")
    run_of(server, "counting", 2)
    redis.thaw()
    server.log.wait("redis is back")
    until_hit(server, 2)
    gone = [line for line in server.log.lines if line.get("event") == "redis is gone"]
    assert len(gone) == 1
    assert counted(server, "counting")["fail"] == 0


def test_whatever_lies_in_redis_is_a_miss(
    redis: RedisProcess, repository: Path, start_server: Callable[..., Running]
) -> None:
    import redis as library

    server = start_server(repository, *redis.config)
    run_of(server, "counting", 71)
    with library.Redis(host=ADDRESS, port=redis.port) as client:
        [key] = _new_keys(client, server)
        good = client.get(key)
        for value in (b"", b"no entry", b"\x80\x04N.", good[:-1], good + b"x", bytes(len(good))):
            before = counted(server, "counting")
            client.set(key, value)
            run_of(server, "counting", 72)
            assert counted(server, "counting")["cache_hit"] == before["cache_hit"]
            assert counted(server, "counting")["cache_miss"] == before["cache_miss"] + 1
        client.delete(key)
        client.lpush(key, "a list")
        run_of(server, "counting", 72)
        server.log.wait("response cache failed")
        client.delete(key)
        until_hit(server, 72)


def _new_keys(client: Any, server: Running) -> set[bytes]:
    before = set(client.keys(f"{PREFIX}*"))
    run_of(server, "counting", 72)
    return set(client.keys(f"{PREFIX}*")) - before


PASSWORD = {"TRITONCACHE_REDIS_PASSWORD": "secret"}
USER = {"TRITONCACHE_REDIS_USERNAME": "somebody"}


@pytest.mark.parametrize(
    ("flags", "environment"),
    [
        (["password=secret"], {}),
        (["user=default", "password=secret"], {}),
        ([], PASSWORD),
        (["user=default"], {**PASSWORD, **USER}),
    ],
)
async def test_the_right_password(
    own_redis: Callable[..., RedisProcess],
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    environment: dict[str, str],
) -> None:
    redis = own_redis("--requirepass", "secret")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    given = dict(flag.split("=") for flag in flags)
    made = RedisCache(settings_of(redis, **given))
    await made.start()
    await made.insert(KEY, b"value")
    assert await made.lookup(KEY) == b"value"
    await made.close()


WRONG: list[dict[str, Any]] = [{}, {"password": "wrong"}, {"user": "nobody", "password": "secret"}]


async def test_a_wrong_password_ends_the_start(
    own_redis: Callable[..., RedisProcess], repository: Path
) -> None:
    redis = own_redis("--requirepass", "secret")
    for given in WRONG:
        made = RedisCache(settings_of(redis, **given))
        with pytest.raises(InvalidArgument, match="the cache 'redis' is refused by "):
            await made.start()
        await made.close()
    running = launch(repository, *redis.config, "--cache-config=redis,password=guess")
    assert running.wait_exit() == 1
    [message] = [line["event"] for line in running.log.lines if "redis" in line.get("event", "")]
    assert message.endswith("check its user, password and db")
    assert "guess" not in running.log.text


def test_no_redis_ends_the_start(repository: Path) -> None:
    with socket.socket() as free:  # a port that is taken by nobody who answers
        free.bind((ADDRESS, 0))
        port = free.getsockname()[1]
        flags = [f"--cache-config=redis,{f}" for f in (f"host={ADDRESS}", f"port={port}")]
        running = launch(repository, *flags)
        assert running.wait_exit() == 1
    [message] = [line["event"] for line in running.log.lines if "redis" in line.get("event", "")]
    assert message.startswith(f"the cache 'redis' cannot reach {ADDRESS}:{port}: ")


async def test_many_at_once_share_few_connections(
    own_redis: Callable[..., RedisProcess],
) -> None:
    redis = own_redis()
    made = RedisCache(settings_of(redis, pool_size=2, wait_timeout=60_000))
    await made.start()
    keys = [number.to_bytes(32, "big") for number in range(300)]
    await asyncio.gather(*(made.insert(key, key * 100) for key in keys))
    assert await asyncio.gather(*map(made.lookup, keys)) == [key * 100 for key in keys]
    assert len(await made._client.client_list()) <= 4
    await made.close()


async def test_who_waits_too_long_for_a_connection_misses(redis: RedisProcess) -> None:
    made = RedisCache(settings_of(redis, pool_size=1, wait_timeout=1))
    await made.start()
    await made.insert(KEY, b"value")
    await made._slots.acquire()
    assert await made.lookup(KEY) is None
    made._slots.release()
    assert await made.lookup(KEY) == b"value"
    await made.close()


async def test_a_lookup_that_is_cancelled_leaves_nothing_to_the_next(redis: RedisProcess) -> None:
    made = RedisCache(settings_of(redis, pool_size=1))
    await made.start()
    keys = [number.to_bytes(32, "little") for number in range(40)]
    for key in keys:
        await made.insert(key, key)
    for turns, key in enumerate(keys):
        task = asyncio.ensure_future(made.lookup(keys[0]))
        for _ in range(turns % 10):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await made.lookup(key) == key
    await made.close()


async def test_a_response_that_redis_cannot_take(
    redis: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "LARGEST", 10)
    made = RedisCache(settings_of(redis))
    await made.start()
    with pytest.raises(InvalidArgument, match="a response of 11 bytes is too large for Redis"):
        await made.insert(KEY, bytes(11))
    await made.close()


async def test_a_full_redis_keeps_what_it_has(own_redis: Callable[..., RedisProcess]) -> None:
    redis = own_redis("--maxmemory", "2mb", "--maxmemory-policy", "noeviction")
    made = RedisCache(settings_of(redis))
    await made.start()
    await made.insert(KEY, b"value")
    keys = [number.to_bytes(32, "big") for number in range(8)]
    inserts = (made.insert(key, bytes(1 << 20)) for key in keys)
    refused = [end for end in await asyncio.gather(*inserts, return_exceptions=True) if end]
    assert refused
    assert all(isinstance(end, ResponseError) and "maxmemory" in str(end) for end in refused)
    assert await made.lookup(KEY) == b"value"
    assert made._returning is None, "it is full, not gone"
    await made.close()


async def test_it_is_asked_again_only_when_it_is_back(
    own_redis: Callable[..., RedisProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "PAUSE", 0.01)
    redis = own_redis()
    made = RedisCache(settings_of(redis, socket_timeout=500, connect_timeout=500))
    await made.start()
    redis.freeze()
    assert await asyncio.gather(*(made.lookup(KEY) for _ in range(100))) == [None] * 100
    returning = made._returning
    assert returning is not None
    await made.insert(KEY, b"lost")
    redis.thaw()
    await asyncio.wait_for(returning, PATIENCE)
    assert await made.lookup(KEY) is None
    redis.kill()
    assert await made.lookup(KEY) is None
    await made.close()  # while it is gone


async def test_nobody_there(own_redis: Callable[..., RedisProcess]) -> None:
    redis = own_redis()
    redis.kill()
    made = RedisCache(replace(settings_of(redis), connect_timeout=100))
    with pytest.raises(Unavailable, match="cannot reach"):
        await made.start()
    await made.close()
