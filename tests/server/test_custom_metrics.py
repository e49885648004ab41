"""Families that Python models declare, on the metrics page of a real server."""

from collections.abc import Callable

import pytest
from server_harness import Running, ask, write_python_model

from microkernel_python.errors import TritonModelException

CONFIG = """
max_batch_size: 4
input { name: "X" data_type: TYPE_INT32 dims: [ 1 ] }
output { name: "Y" data_type: TYPE_FP64 dims: [ 1 ] }
"""
MODEL = """
def initialize(self, args):
    Family = pb_utils.MetricFamily
    self.counters = Family(name="seen_total", description="Numbers.", kind=Family.COUNTER)
    self.gauges = Family("last_number", "The last one.", Family.GAUGE)
    self.histograms = Family("numbers", "All of them.", Family.HISTOGRAM)
    self.counter = self.counters.Metric(labels={"model": "a", "version": "1"})
    self.gauge = self.gauges.Metric()
    self.histogram = self.histograms.Metric(labels={"of": "x"}, buckets=[1, 10])
    self.gauge.set(-1)

def execute(self, requests):
    responses = []
    for request in requests:
        number = int(read(request, "X")[0][0])
        if number == 666:
            os._exit(13)
        self.counter.increment(1)
        self.gauge.set(number)
        self.histogram.observe(number)
        responses.append(answer(Y=np.array([[self.counter.value()]])))
    return responses
"""
ASYNC = """
async def execute(self, requests):
    self.family = pb_utils.MetricFamily("late", "", pb_utils.MetricFamily.GAUGE)
    self.metric = self.family.Metric({"by": "async"})
    self.metric.increment(2.5)
    return [answer(Y=np.array([[self.metric.value()]])) for request in requests]
"""
WRONG = """
def initialize(self, args):
    self.family = pb_utils.MetricFamily("seen_total", "", pb_utils.MetricFamily.GAUGE)
"""

Start = Callable[..., Running]


@pytest.fixture(scope="module")
def server(start_server: Start, tmp_path_factory: pytest.TempPathFactory) -> Running:
    repository = tmp_path_factory.mktemp("custom") / "models"
    write_python_model(repository, "m", CONFIG, MODEL)
    write_python_model(repository, "late", CONFIG, ASYNC)
    threaded = CONFIG + 'parameters { key: "WORKER" value { string_value: "thread" } }'
    write_python_model(repository, "threaded", threaded, ASYNC.replace("async def", "def"))
    write_python_model(repository, "wrong", CONFIG, WRONG + "\ndef execute(self, _):\n    pass\n")
    return start_server(repository, "--model-control-mode=explicit")


def load(server: Running, model: str) -> int:
    return server.post(f"/v2/repository/models/{model}/load").status


def infer(server: Running, model: str, number: int) -> float:
    answer = server.infer(model, ("X", "INT32", [[number]]))
    assert answer.status == 200, answer.body
    return float(answer.json["outputs"][0]["data"][0])


def test_the_series_of_a_model_from_load_to_unload(server: Running) -> None:
    assert load(server, "m") == 200
    fresh = server.metrics()
    assert fresh['seen_total{model="a",version="1"}'] == 0
    assert fresh["last_number"] == -1
    assert fresh['numbers_count{of="x"}'] == 0
    assert [infer(server, "m", number) for number in (1, 7, 70)] == [1, 2, 3]
    page = ask(server.ports["Metrics"], "GET", "/metrics").body.decode()
    for lines in (
        "# HELP seen_total Numbers.\n# TYPE seen_total counter\n",
        'seen_total{model="a",version="1"} 3\n',
        "# HELP last_number The last one.\n# TYPE last_number gauge\nlast_number 70",
        '# TYPE numbers histogram\nnumbers_bucket{of="x",le="1"} 1\n',
        'numbers_bucket{of="x",le="10"} 2\n',
        'numbers_bucket{of="x",le="+Inf"} 3\nnumbers_sum{of="x"} 78\nnumbers_count{of="x"} 3',
    ):
        assert lines in page
    server.unload("m")
    page = ask(server.ports["Metrics"], "GET", "/metrics").body.decode()
    assert not any(name in page for name in ("seen_total", "last_number", "numbers"))


def test_a_worker_that_died_begins_anew(server: Running) -> None:
    assert load(server, "m") == 200
    assert infer(server, "m", 5) == 1
    since = len(server.log.lines)
    answer = server.infer("m", ("X", "INT32", [[666]]))
    assert answer.status == 503
    server.log.wait("worker restarted", since=since)
    fresh = server.metrics()
    assert fresh['seen_total{model="a",version="1"}'] == 0
    assert fresh["last_number"] == -1
    server.unload("m")


@pytest.mark.parametrize("model", ["late", "threaded"])
def test_a_family_may_come_late_and_on_a_loop_or_in_a_thread(server: Running, model: str) -> None:
    assert load(server, model) == 200
    assert "late" not in server.metrics()
    assert infer(server, model, 1) == 2.5
    assert server.metrics()['late{by="async"}'] == 2.5
    server.unload(model)
    assert 'late{by="async"}' not in server.metrics()


def test_a_family_of_another_kind_fails_the_load(server: Running) -> None:
    assert load(server, "m") == 200
    answer = server.post("/v2/repository/models/wrong/load")
    assert answer.status == 400
    words = f"{TritonModelException.__name__}: metric family 'seen_total' is a counter"
    assert words in answer.error
    server.unload("m")
