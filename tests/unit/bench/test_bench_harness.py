"""The parts of the benchmark harness on which every figure rests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

WRK = """Running 1s test @ http://127.0.0.1:1/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.21ms  812.00us  20.02ms   97.01%
    Req/Sec    53.22k     2.12k   55.00k    80.00%
  Latency Distribution
     50%    1.10ms
     75%    1.20ms
     90%    1.40ms
     99%  980.00us
  52918 requests in 1.00s, 62.33MB read
  Socket errors: connect 0, read 3, write 0, timeout 1
  Non-2xx or 3xx responses: 7
Requests/sec:  52891.27
Transfer/sec:     62.30MB
"""


@pytest.fixture(scope="module")
def harness() -> ModuleType:
    path = Path(__file__).parents[3] / "bench" / "harness.py"
    spec = importlib.util.spec_from_file_location("bench_harness", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_harness"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_what_wrk_prints_is_read_whole_errors_too(harness: ModuleType) -> None:
    assert harness.parse_wrk(WRK) == harness.WrkResult(rps=52891.27, requests=52918, p50_ms=1.1, p99_ms=0.98, errors=11)
    with pytest.raises(harness.BenchError, match="unexpected"):
        harness.parse_wrk("unable to connect")


def test_a_ratio_above_one_means_that_the_first_subject_is_better(harness: ModuleType) -> None:
    ours, theirs, broken = harness.Row("edgetun"), harness.Row("peer"), harness.Row("gone", note="it died")
    for rps, cpu in ((300, 1), (200, 2), (100, 3)):
        ours.add(rps=rps, cpu=cpu)
    theirs.add(rps=100, cpu=8)
    columns = [
        harness.Column("rps", "requests/s", ratio=True),
        harness.Column("cpu", "CPU s", 1, ratio=True, less_is_better=True),
    ]
    assert harness.table([ours, theirs, broken], columns) == [
        ["subject", "requests/s", "ratio", "CPU s", "ratio"],
        ["edgetun", "200", "", "2.0", ""],
        ["peer", "100", "2.00x", "8.0", "4.00x"],
        ["gone", "it died", "", "", ""],
    ]


def test_processes_are_pinned_counted_and_ended(harness: ModuleType) -> None:
    with harness.Stage() as stage:
        burner = stage.start("burner", [sys.executable, "-c", "while True: pass"])
        harness.wait_until("some CPU", lambda: burner.cpu_s() > 0.05, [burner])
        assert burner.rss_bytes() > 1_000_000
        folder = stage.folder
    assert not burner.is_running
    assert not folder.exists()


def test_a_process_that_dies_is_told_with_what_it_said(harness: ModuleType) -> None:
    with harness.Stage() as stage:
        dying = stage.start("dying", [sys.executable, "-c", "import sys; sys.exit('no such port')"])
        with pytest.raises(harness.BenchError, match=r"ready: died\n--- dying\nno such port"):
            harness.wait_until("ready", lambda: False, [dying])


H2LOAD = """
Application protocol: h2
finished in 3.14s, 19089.23 req/s, 19.74MB/s
requests: 60000 total, 60000 started, 60000 done, 59990 succeeded, 10 failed, 4 errored, 0 timeout
status codes: 59990 2xx, 0 3xx, 0 4xx, 0 5xx
                     min         max         mean         sd        +/- sd
time for request:      320us     53.11ms     31.57ms      5.59ms    76.44%
"""


def test_what_h2load_prints_is_read(harness: ModuleType) -> None:
    result = harness.parse_h2load(H2LOAD)
    assert (result.rps, result.requests, result.mean_ms, result.errors) == (19089.23, 59990, 31.57, 10)
    with pytest.raises(harness.BenchError):
        harness.parse_h2load("unexpected")


def test_what_was_measured_no_further_is_said_to_be_more(harness: ModuleType) -> None:
    ours, theirs = harness.Row("edgetun"), harness.Row("peer")
    ours.add(away=0.5)
    theirs.add(away=10.0)
    columns = [harness.Column("away", "s", 2, ratio=True, less_is_better=True, most=10.0)]
    assert harness.table([ours, theirs], columns)[1:] == [["edgetun", "0.50", ""], ["peer", "> 10", "> 20.00x"]]
