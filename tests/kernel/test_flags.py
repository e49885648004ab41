"""What flags may say, and what the operator is told of those that do nothing."""

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from microkernel import BackendType, Between, InvalidArgument, Listening, Shaped, option
from microkernel.accepted import AcceptedSettings
from microkernel.app import Setup
from microkernel.backend_config import parse_backend_config, values_for, without_effect
from microkernel.frontend import clash
from microkernel.log import LogControl
from microkernel.options import NO_EFFECT, build, options_of, remarks
from microkernel.plugins import Plugin, Plugins
from microkernel.port import LogSettings
from microkernel.settings import ServerSettings

TRITON = """
    id exit-timeout-secs log-verbose log-info log-warning log-error log-format log-file
    model-repository model-store exit-on-error disable-auto-complete-config strict-readiness
    model-control-mode repository-poll-secs load-model model-config-name model-load-thread-count
    model-load-retry-count model-namespacing enable-peer-access allow-gpu-metrics allow-cpu-metrics
    metrics-interval-ms metrics-config trace-config backend-directory backend-config
    repoagent-directory cache-config cache-directory rate-limit rate-limit-resource
    pinned-memory-pool-byte-size cuda-memory-pool-byte-size cuda-virtual-address-size
    min-supported-compute-capability buffer-manager-thread-count host-policy model-load-gpu-limit
    allow-client-shm strict-model-config response-cache-byte-size trace-file trace-level trace-rate
    trace-count trace-log-frequency
"""
"""Every flag of Triton that belongs to no protocol."""


def test_every_flag_of_triton_is_known() -> None:
    spelled = (spec.flag.split() for _, spec, _ in options_of(ServerSettings).values())
    known = set(itertools.chain.from_iterable(spelled))
    assert {f"--{name}" for name in TRITON.split()} <= known


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings that say more than their types."""

    flag_group: ClassVar[str] = "Odd"

    depth: int = option(1, flag="--depth", about="How deep.", check=Between(0, 8))
    width: float = option(1.0, about="How wide.", check=Between(0.5))
    places: tuple[str, ...] = option(
        (), about="Where.", many=True, check=Shaped("<x>:<y>", r"\d+:\d+")
    )
    words: tuple[str, ...] = option((), about="What.", many=True, choices=("yes", "no"))
    elsewhere: int = option(1, about="Shown elsewhere.", group="Far")
    idle: int = option(0, flag="--idle", no_effect="nobody works")
    unflagged: int = option(0, no_effect="nobody asks")
    old: bool = option(False, flag="--old --older", deprecated="--new")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"depth": 9}, "file: 'depth' must be from 0 to 8, got 9"),
        ({"depth": -1}, "file: 'depth' must be from 0 to 8, got -1"),
        ({"width": 0.25}, "file: 'width' must be at least 0.5, got 0.25"),
        ({"places": ["1:2", "3"]}, "file: 'places' must have the form <x>:<y>, got ('1:2', '3')"),
        ({"places": ["1:2\n"]}, r"file: 'places' must have the form <x>:<y>, got ('1:2\n',)"),
        ({"places": [1]}, "file: 'places' must be a list of texts, got (1,)"),
        ({"words": ["maybe"]}, "file: 'words' must be one of yes, no, got ('maybe',)"),
    ],
)
def test_a_value_that_is_not_allowed(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        build(Settings, values, "file")
    assert str(caught.value) == message


def test_bounds_belong_to_what_is_allowed() -> None:
    values = {"depth": 8, "width": 0.5, "places": ["1:2", "3:4"], "words": ["yes", "no"]}
    assert build(Settings, values, "file").depth == 8
    assert build(Settings, {"depth": 0}, "file").depth == 0


def test_choices_may_be_given_in_any_case() -> None:
    assert build(Settings, {"words": ["YES", "no"]}, "file").words == ("yes", "no")
    given = build(ServerSettings, {"model_control_mode": "Poll", "log_format": "iso8601"}, "file")
    assert (given.model_control_mode, given.log_format) == ("poll", "ISO8601")


def test_groups() -> None:
    groups = {name: spec.group for name, (_, spec, _) in options_of(Settings).items()}
    assert (groups["depth"], groups["elsewhere"], groups["old"]) == ("Odd", "Far", "Odd")
    assert groups["idle"] == groups["unflagged"] == NO_EFFECT


def test_a_flag_without_effect_says_why() -> None:
    about = {name: spec.about for name, (_, spec, _) in options_of(Settings).items()}
    assert (about["idle"], about["old"]) == ("Nobody works.", "Deprecated: --new.")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (None, []),
        (Settings(), []),
        (Settings(depth=2, idle=0), []),
        (Settings(idle=1), ["--idle has no effect: nobody works"]),
        (Settings(unflagged=1), ["'unflagged' has no effect: nobody asks"]),
        (Settings(old=True), ["--old is deprecated; write --new"]),
        (
            AcceptedSettings(model_namespacing=True, enable_peer_access=True),
            [
                "--model-namespacing has no effect: a model whose name stands in two repositories "
                "is refused"
            ],
        ),
        (
            ServerSettings(strict_model_config=True),
            ["--strict-model-config is deprecated; write --disable-auto-complete-config"],
        ),
    ],
)
def test_what_the_operator_is_told(settings: object, said: list[str]) -> None:
    assert remarks(settings) == said


def test_every_flag_without_effect_is_told_of_once() -> None:
    others: dict[type[object], object] = {int: 99, bool: True, float: 99.5, str: "1-2"}
    given = {
        name: ("0:0.5",) if spec.many else spec.choices[1] if spec.choices else others[kind]
        for name, (kind, spec, _) in options_of(AcceptedSettings).items()
    }
    given["enable_peer_access"] = False
    found = remarks(AcceptedSettings(**given))  # type: ignore[arg-type]
    assert len(found) == len(given)
    assert all(line.startswith("--") and " has no effect: " in line for line in found)


@pytest.mark.parametrize(
    ("flag", "right", "wrong"),
    [
        ("cuda_memory_pool_byte_size", ["0:67108864"], ["0", "0:", ":1", "a:1", "0:-1", "0:1:2"]),
        ("cuda_virtual_address_size", ["1:1"], ["1=1"]),
        ("model_load_gpu_limit", ["0:0.5", "0:1", "1:0", "0:1.0", "0:.5"], ["0:2", "0", "0:1.1"]),
        ("host_policy", ["gpu_0,numa-node=0", "p,cpu-cores=0-3"], ["p", "p,k", "p=1", ",k=v"]),
        ("cache_config", ["local,size=104857600", "redis,host=a=b"], ["local", "size=1"]),
        ("rate_limit_resource", ["R1:10", "R1:10:0"], ["R1", "R1:x", "R1:1:2:3"]),
    ],
)
def test_forms_are_checked(flag: str, right: list[str], wrong: list[str]) -> None:
    for text in right:
        build(ServerSettings, {flag: [text]}, "file")
    for text in wrong:
        with pytest.raises(InvalidArgument, match="must have the form <"):
            build(ServerSettings, {flag: [text]}, "file")


A, B = "--a-port", "--b-port"


@pytest.mark.parametrize(
    ("first", "second", "meet"),
    [
        (("0.0.0.0", 8000), ("0.0.0.0", 8001), False),
        (("0.0.0.0", 8000), ("0.0.0.0", 8000), True),
        (("127.0.0.1", 8000), ("127.0.0.2", 8000), False),
        (("0.0.0.0", 8000), ("127.0.0.2", 8000), True),
        (("127.0.0.1", 8000), ("::", 8000), True),
        (("localhost", 0), ("localhost", 0), False),
        (("unix:/a", 8000), ("unix:/b", 8000), False),
        (("unix:/a", 8000), ("unix:/a", 8001), True),
        (("unix:/a", 8000), ("0.0.0.0", 8000), False),
        (("0.0.0.0", 8000), ("unix:/a", 8000), False),
    ],
)
def test_ports_of_one_address_must_differ(
    first: tuple[str, int], second: tuple[str, int], meet: bool
) -> None:
    fault = clash(
        [Listening("--c-port", "10.0.0.1", 1), Listening(A, *first), Listening(B, *second)]
    )
    assert bool(fault) == meet
    if meet:
        assert A in fault
        assert B in fault


@dataclass(frozen=True, slots=True)
class Doubtful:
    """The settings of a plug-in that finds itself what changes nothing."""

    files: str = option("", about="Which.")

    def doubts(self) -> list[str]:
        return [f"{self.files} changes nothing"] if self.files else []


def test_what_a_plug_in_finds_doubtful_is_told() -> None:
    plugins = Plugins([Plugin("odd", "", "", settings_type=Doubtful)], None, {})
    control = LogControl(LogSettings())
    given = {"odd": {"files": "it"}}
    assert Setup(ServerSettings(), plugins, given, control).doubts() == ["it changes nothing"]
    assert Setup(ServerSettings(), plugins, {}, control).doubts() == []


@dataclass(frozen=True, slots=True)
class OfBackend:
    """The settings of a plug-in with a backend."""

    default_max_batch_size: int = option(4, about="How many.")
    share: float = option(0.5, about="How much.")
    fast: bool = option(False, about="Be fast.")
    name: str = option("", about="Whose.")
    paths: tuple[str, ...] = option((), about="Where.", many=True)


def plug_in(name: str, settings: type[object] | None, **ignored: str) -> Plugin:
    backend = BackendType(f"{name}runtime", "nowhere:make", ignored_settings=ignored)
    return Plugin(name, "", "", settings_type=settings, backends=[backend])


ONE, TWO = plug_in("one", OfBackend, threads="there are none"), plug_in("two", None)


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ([], {}),
        (["oneruntime,default-max-batch-size=8"], {"default_max_batch_size": 8}),
        (["default-max-batch-size=8"], {"default_max_batch_size": 8}),
        (["oneruntime,share=1", "oneruntime,name=a,b=c"], {"share": 1.0, "name": "a,b=c"}),
        (["oneruntime,fast=ON", "tworuntime,name=x"], {"fast": True}),
        (["oneruntime,fast=1", "oneruntime,fast=off"], {"fast": False}),
        (["oneruntime,paths=a", "oneruntime,paths=b"], {"paths": ("a", "b")}),
        # What is meant for one backend beats what is meant for all, in whatever order.
        (["oneruntime,share=0.1", "share=0.2"], {"share": 0.1}),
        (["share=0.2", "oneruntime,share=0.1"], {"share": 0.1}),
        (["oneruntime,name="], {"name": ""}),
    ],
)
def test_settings_of_backends(given: list[str], values: dict[str, Any]) -> None:
    assert values_for(parse_backend_config(given), ONE) == values


@pytest.mark.parametrize("entry", ["", "x", "a,b", "=1", "a,=1", ",k=1", "a,b,c=1"])
def test_a_setting_of_a_backend_has_a_form(entry: str) -> None:
    with pytest.raises(InvalidArgument, match="--backend-config must be <backend>,<key>=<value>"):
        parse_backend_config([entry])
    with pytest.raises(InvalidArgument, match="must have the form <backend>,<key>=<value>"):
        build(ServerSettings, {"backend_config": [entry]}, "file")


@pytest.mark.parametrize("entry", ["fast=maybe", "default-max-batch-size=x", "share=much"])
def test_a_setting_of_a_backend_has_a_type(entry: str) -> None:
    with pytest.raises(InvalidArgument, match=f"--backend-config oneruntime,{entry}: the value"):
        values_for(parse_backend_config([f"oneruntime,{entry}"]), ONE)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("oneruntime,fast=1", ""),
        ("fast=1", ""),
        ("tensorflow,version=2", "there is no backend 'tensorflow'"),
        ("oneruntime,threads=2", "there are none"),
        (
            "oneruntime,colour=red",
            "the backend 'oneruntime' has no such setting; there are default_max_batch_size, fast, "
            "name, paths, share",
        ),
        ("tworuntime,fast=1", "the backend 'tworuntime' has no such setting"),
        (
            "colour=red",
            "no backend has such a setting; there are default_max_batch_size, fast, name, paths, "
            "share",
        ),
    ],
)
def test_settings_that_no_backend_takes_are_told_of(entry: str, reason: str) -> None:
    said = f"--backend-config {entry} has no effect: {reason}"
    assert without_effect(parse_backend_config([entry]), [ONE, TWO]) == ([said] if reason else [])


def setup(settings: ServerSettings, flags: dict[str, Any] | None = None) -> Setup:
    plugins = Plugins([ONE, TWO], None, {"one": {"share": 0.25, "fast": True}})
    return Setup(settings, plugins, {"one": flags or {}}, LogControl(LogSettings()))


def test_a_setting_of_a_backend_beats_the_file_and_a_flag_beats_it() -> None:
    given = setup(
        ServerSettings(backend_config=("share=0.75", "oneruntime,name=flag")), {"name": "mine"}
    )
    made = given.plugin_settings(ONE)
    assert (made.share, made.fast, made.name) == (0.75, True, "mine")
    assert given.plugin_settings(TWO) is None


def test_everything_that_is_doubtful_is_told() -> None:
    given = ServerSettings(
        model_namespacing=True,
        backend_config=("x,y=1",),
        repository_poll_secs=5,
        rate_limit_resource=("R:1",),
    )
    assert setup(given).doubts() == [
        "--model-namespacing has no effect: a model whose name stands in two repositories is "
        "refused",
        "--backend-config x,y=1 has no effect: there is no backend 'x'",
        "--repository-poll-secs has no effect without --model-control-mode=poll",
        "--rate-limit-resource has no effect without --rate-limit=execution_count",
    ]
    assert setup(ServerSettings(repository_poll_secs=5, model_control_mode="poll")).doubts() == []
