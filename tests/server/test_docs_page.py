"""The page at `/docs` in a real browser: it lists what the server serves, tries calls, loads
nothing from anywhere else, and takes no harm from the names of models."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from server_harness import ADDRESS, Running, write_python_model

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright, of the group 'dev', is missing"
)
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="chromium is not installed"),
]

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
KEY = "open-sesame-open-sesame"
PATIENCE_MS = 30_000
_ENDED = re.compile(r" ms$|Error")
HARMFUL = "<img src=x onerror=document.title='harmed'><script>document.title='harmed'<"
TAG = "<b onclick=alert(1)>"
NUMBERS = """
max_batch_size: 4
input { name: "X" data_type: TYPE_FP32 dims: [ -1 ] }
output { name: "Y" data_type: TYPE_FP32 dims: [ -1 ] }
"""
DOUBLE = """
def execute(self, requests):
    return [answer(Y=2 * read(request, "X")) for request in requests]
"""
TEXT = f"""
input {{ name: "{TAG}" data_type: TYPE_STRING dims: [ -1 ] }}
output {{ name: "Y" data_type: TYPE_STRING dims: [ -1 ] }}
"""
ECHO = f"""
def execute(self, requests):
    return [answer(Y=read(request, "{TAG}")) for request in requests]
"""
COUNTING = """
model_transaction_policy { decoupled: true }
input { name: "N" data_type: TYPE_INT32 dims: [ 1 ] }
output { name: "I" data_type: TYPE_INT32 dims: [ 1 ] }
"""
COUNT = """
def execute(self, requests):
    for request in requests:
        sender, number = request.get_response_sender(), int(read(request, "N")[0])
        for i in range(max(1, abs(number))):
            sender.send(answer(I=np.array([i], np.int32)))
        while number < 0 and not request.is_cancelled():
            time.sleep(0.01)
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


class Shown:
    """The page in a browser, and what it did: the hosts that it asked and the lines that it wrote
    to its console, errors of its code and dialogs included."""

    def __init__(self, page: Any, url: str, shows: str = "section") -> None:
        self.page = page
        self.hosts: set[str] = set()
        self.console: list[str] = []
        page.set_default_timeout(PATIENCE_MS)
        page.on("request", lambda request: self.hosts.add(urlsplit(request.url).hostname))
        page.on("websocket", lambda socket: self.hosts.add(urlsplit(socket.url).hostname))
        page.on("console", lambda line: self.console.append(f"{line.type}: {line.text}"))
        page.on("pageerror", lambda error: self.console.append(str(error)))
        page.on("dialog", lambda dialog: self.console.append(f"dialog: {dialog.message}"))
        page.goto(url)
        page.wait_for_selector(shows)

    def open(self, path: str, method: str = "POST") -> "Entry":
        """Open what the page has about a call."""
        head = self.page.locator(f'summary:has(.path:text-is("{path}"))')
        head = head.filter(has=self.page.locator(f'.method:text-is("{method}")'))
        head.click()
        return Entry(head.locator(".."))


class Entry:
    """A call that can be tried."""

    def __init__(self, details: Any) -> None:
        self.details = details
        self.body = details.locator("textarea")
        self.output = details.locator(".body > pre")
        self.stop = details.get_by_role("button", name="Stop")

    def send(self) -> None:
        """Send the request."""
        self.details.get_by_role("button", name="Send").click()

    def tried(self) -> tuple[str, str]:
        """Send the request: the status line and the answer, once it is whole."""
        self.send()
        playwright.expect(self.details.locator(".body > p")).to_have_text(
            _ENDED, timeout=PATIENCE_MS
        )
        return self.details.locator(".body > p").inner_text(), self.output.inner_text()


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Running]
) -> Running:
    folder = tmp_path_factory.mktemp("docs")
    write_python_model(folder / "models", "double", NUMBERS, DOUBLE)
    write_python_model(folder / "models", "count", COUNTING, COUNT)
    write_python_model(folder / "models", HARMFUL, TEXT, ECHO)
    return start_server(folder / "models")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=BROWSER, args=list(FLAGS))
        yield running
        running.close()


@pytest.fixture
def show(browser: Any) -> Iterator[Callable[[Running], Shown]]:
    """`show(server)`: its page, in a fresh profile; once it shows what the second argument
    selects."""
    context = browser.new_context()

    def load(running: Running, shows: str = "section") -> Shown:
        return Shown(context.new_page(), f"http://{ADDRESS}:{running.http}/docs", shows)

    yield load
    context.close()


def test_every_call_is_listed_and_nothing_comes_from_elsewhere(
    server: Running, show: Callable[[Running], Shown]
) -> None:
    shown, described = show(server), server.get("/openapi.json").json
    heads = shown.page.locator("section > details > summary")
    listed = {
        (head.locator(".method").inner_text().lower(), head.locator(".path").inner_text())
        for head in heads.all()
    }
    assert listed == {
        (method, path)
        for path, item in described["paths"].items()
        for method in item.keys() & {"get", "post"}
    }
    assert heads.count() == len(listed) > 40
    for head in heads.all():
        head.click()
    # A call is filled in a moment after it was opened.
    sends = shown.page.locator("button:text-is('Send')")
    playwright.expect(sends).to_have_count(len(listed), timeout=PATIENCE_MS)
    assert shown.page.title() == described["info"]["title"]
    assert (shown.hosts, shown.console) == ({ADDRESS}, [])


def test_a_model_is_tried_and_its_answer_shown(
    server: Running, show: Callable[[Running], Shown]
) -> None:
    shown = show(server)
    entry = shown.open("/v2/models/double/infer")
    asked = json.loads(entry.body.input_value())
    asked["inputs"][0] |= {"shape": [1, 3], "data": [1, 2.5, -3]}
    entry.body.fill(json.dumps(asked))
    status, answer = entry.tried()
    assert status.startswith("200 application/json, ")
    (output,) = json.loads(answer)["outputs"]
    assert (output["name"], output["shape"], output["data"]) == ("Y", [1, 3], [2, 5, -6])
    assert (shown.hosts, shown.console) == ({ADDRESS}, [])


def test_the_examples_of_every_model_are_answered(
    server: Running, show: Callable[[Running], Shown]
) -> None:
    shown = show(server)
    paths = shown.page.locator("section > details .path").all_inner_texts()
    models = [
        path
        for path in paths
        if re.fullmatch("/v2/models/[^/{]+/\\w+", path) and not path.endswith("/stats")
    ]
    assert len(models) == 9
    for path in models:
        status, answer = shown.open(path).tried()
        assert status.startswith("200 "), (path, status, answer)
    assert (shown.hosts, shown.console) == ({ADDRESS}, [])


def test_names_on_the_page_do_no_harm(server: Running, show: Callable[[Running], Shown]) -> None:
    shown = show(server)
    assert f"model {HARMFUL}" in shown.page.locator("h2").all_inner_texts()
    assert shown.page.locator("img, b, main script").count() == 0
    entry = shown.open("/v2/models/{model}/config", "GET")
    entry.details.get_by_label("model").fill(HARMFUL)
    status, answer = entry.tried()
    assert status.startswith("200 ")
    assert json.loads(answer)["input"][0]["name"] == TAG
    assert shown.page.locator("img, b, main script").count() == 0
    assert shown.page.title() == "triton"
    assert (shown.hosts, shown.console) == ({ADDRESS}, [])


def test_a_stream_of_events_is_shown_as_it_comes_and_can_be_stopped(
    server: Running, show: Callable[[Running], Shown]
) -> None:
    shown = show(server)
    entry = shown.open("/v2/models/count/generate_stream")
    entry.body.fill('{"N": 3}')
    status, answer = entry.tried()
    assert status.startswith("200 text/event-stream")
    told = [json.loads(line.removeprefix("data: ")) for line in answer.split("\n") if line]
    assert [event["I"] for event in told] == [0, 1, 2]
    entry.body.fill('{"N": -2}')
    entry.send()
    playwright.expect(entry.output).to_contain_text('"I":1', timeout=PATIENCE_MS)
    entry.stop.click()
    playwright.expect(entry.details.locator(".failed")).to_contain_text("AbortError")
    playwright.expect(entry.stop).to_be_disabled()
    playwright.expect(entry.output).to_contain_text('"I":1')
    entry.body.fill('{"N": 1}')
    assert entry.tried()[0].startswith("200 ")
    assert (shown.hosts, shown.console) == ({ADDRESS}, [])


def test_infer_as_a_stream_of_events(server: Running, show: Callable[[Running], Shown]) -> None:
    shown = show(server)
    entry = shown.open("/v2/models/count/infer")
    entry.details.get_by_label("As a stream of events").check()
    asked = json.loads(entry.body.input_value())
    asked["inputs"][0]["data"] = [2]
    entry.body.fill(json.dumps(asked))
    status, answer = entry.tried()
    assert status.startswith("200 text/event-stream")
    assert answer.count("data: ") == 2


def test_an_error_is_shown_as_the_server_words_it(
    server: Running, show: Callable[[Running], Shown]
) -> None:
    shown = show(server)
    entry = shown.open("/v2/models/double/infer")
    entry.body.fill("{")
    status, answer = entry.tried()
    assert status.startswith("500 application/json")
    assert "Missing a name for object member" in json.loads(answer)["error"]
    assert entry.details.locator("p.failed").count() == 1
    assert all("status of 500" in line for line in shown.console)  # the browser's own words
    assert shown.hosts == {ADDRESS}


def test_a_long_answer_is_cut_off(server: Running, show: Callable[[Running], Shown]) -> None:
    shown = show(server)
    entry = shown.open("/v2/models/double/infer")
    tensor = {"name": "X", "datatype": "FP32", "shape": [1, 100_000], "data": [1.25] * 100_000}
    entry.body.fill(json.dumps({"inputs": [tensor]}))
    status, answer = entry.tried()
    assert status.startswith("200 ")
    assert answer.endswith("\n\u2026 cut off here")
    assert 200_000 < len(answer) < 201_000


def test_what_is_binary_is_told_by_its_size(
    server: Running, show: Callable[[Running], Shown]
) -> None:
    shown = show(server)
    entry = shown.open("/v2/models/double/infer")
    tensor = {"name": "X", "datatype": "FP32", "shape": [1, 1], "data": [1]}
    asked = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    entry.body.fill(json.dumps(asked))
    _, answer = entry.tried()
    assert answer.endswith(" bytes: JSON and binary tensors")
    assert int(answer.split()[0]) > 4


def test_entries_are_found_by_a_part_of_their_name(
    server: Running, show: Callable[[Running], Shown]
) -> None:
    shown = show(server)
    entries = shown.page.locator("section > details")
    everything = entries.count()
    shown.page.get_by_label("Find").fill("models/Double")
    visible = [entry for entry in entries.all() if entry.is_visible()]
    assert len(visible) == 3
    assert all("/v2/models/double/" in entry.inner_text() for entry in visible)
    shown.page.get_by_label("Find").fill("")
    assert sum(entry.is_visible() for entry in entries.all()) == everything


def test_a_key_is_sent_where_the_server_wants_one(
    start_server: Callable[..., Running], tmp_path: Path, show: Callable[..., Shown]
) -> None:
    write_python_model(tmp_path / "models", "double", NUMBERS, DOUBLE)
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY}\n")
    keys.chmod(0o600)
    shown = show(start_server(tmp_path / "models", f"--http-auth-file={keys}"), "#about.failed")
    told, field = shown.page.locator("#about"), shown.page.get_by_label("Key")
    playwright.expect(told).to_contain_text("this server wants a key")
    for key in ("wrong", KEY):
        field.fill(key)
        with shown.page.expect_response("**/openapi.json"):
            field.press("Enter")
    playwright.expect(told).to_have_text(re.compile("Version "))
    entry = shown.open("/v2/models/double/infer")
    assert entry.tried()[0].startswith("200 ")
    field.fill("wrong")
    assert entry.tried()[0].startswith("401 ")
    assert all("status of 401" in line for line in shown.console)
    assert shown.hosts == {ADDRESS}


def test_without_a_key_there_is_no_field_for_one(
    server: Running, show: Callable[[Running], Shown]
) -> None:
    assert not show(server).page.get_by_label("Key").is_visible()
