"""The disk tier: what is stored outlives the process, and nothing half written, rotten, purged or misdated is ever served."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest

from edgetun_core.snapshot import CacheRule
from edgetun_exitnode.cache.disk import MAX_PENDING_BYTES, DiskTier, decode_file
from edgetun_exitnode.cache.purge import purge
from edgetun_exitnode.cache.store import Store
from support.cache import Bench, SimulatedTime

RULE = CacheRule(stale_if_error_s=60.0)
FRESH = (b"cache-control", b"max-age=60")
TAG = (b"etag", b'"1"')


class Worker(Executor):
    """Does what it is given when the test says so; at once unless it is held."""

    def __init__(self) -> None:
        self.is_held = False
        self.waiting: list[Callable[[], object]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        if self.is_held:
            self.waiting.append(lambda: fn(*args, **kwargs))
        else:
            fn(*args, **kwargs)

    def release(self) -> None:
        self.is_held = False
        while self.waiting:
            self.waiting.pop(0)()


class Machine:
    """One computer: its disk and clock stay, its processes come and go."""

    def __init__(self, folder: Path, max_bytes: int = 10_000_000) -> None:
        self.folder = folder
        self.time = SimulatedTime()
        self.max_bytes = max_bytes
        self.start()

    def start(self, rule: CacheRule = RULE, tenant: str = "team/shop", memory_bytes: int = 1 << 26) -> Bench:
        self.worker = Worker()
        self.store = Store(memory_bytes)
        self.disk = DiskTier(self.folder, self.max_bytes, lambda call, *args: call(*args), worker=self.worker)
        self.disk.open()
        self.store.use_disk(self.disk, self.time, self.time.wall)
        self.bench = Bench(rule, store=self.store, time=self.time, tenant=tenant)
        return self.bench

    def files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file()]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    return Machine(tmp_path / "cache")


def fill(bench: Bench, target: bytes = b"/", body: bytes = b"hello", *fields: tuple[bytes, bytes]) -> None:
    bench.ask(target)
    bench.origin.exchanges[-1].answer(body, *(fields or (TAG, FRESH)))


def test_what_was_stored_before_a_restart_is_served_after_it_with_its_age(machine):
    body = b"x" * 200_000
    fill(machine.bench, b"/", body, TAG, FRESH, (b"content-type", b"text/plain"))
    machine.time.advance(10.0)
    bench = machine.start()
    guest = bench.ask()
    assert (guest.status, guest.body, guest.age) == (200, body, 10)
    assert guest.cache_status == b"edgetun; hit; ttl=50"
    assert guest.head is not None
    assert guest.head.get(b"content-type") == b"text/plain"
    assert len(bench.origin) == 0
    bench.ask()
    assert machine.disk.reads == 1, "from memory the second time"
    assert bench.ask(b"/", (b"range", b"bytes=0-4")).status == 206
    bench.check_nothing_left()


def test_what_went_stale_on_disk_is_validated_or_stands_in_for_a_failing_origin(machine):
    fill(machine.bench, b"/", b"hello", TAG, (b"cache-control", b"max-age=20"))
    machine.time.advance(30.0)
    bench = machine.start()
    guest = bench.ask()
    assert bench.origin[0].head.get(b"if-none-match") == b'"1"'
    bench.origin[0].answer(b"broken", status=503)
    assert guest.body == b"hello"
    machine.time.advance(2.0)
    guest = bench.ask()
    bench.origin[1].answer_head(304, (TAG, FRESH), end=True)
    assert guest.body == b"hello"
    bench = machine.start()
    assert bench.ask().cache_status == b"edgetun; hit; ttl=60", "what the 304 changed is on disk too"


def test_everyone_who_waits_for_a_file_is_served_by_one_read(machine):
    fill(machine.bench)
    bench = machine.start()
    machine.worker.is_held = True
    guests = [bench.ask() for _ in range(5)]
    gone = bench.ask()
    slow = bench.ask()
    gone.leave()
    slow.pause()
    assert all(guest.is_waiting for guest in guests)
    machine.worker.release()
    assert [guest.body for guest in guests] == [b"hello"] * 5
    assert not gone.body
    slow.resume()
    assert slow.body == b"hello"
    assert machine.disk.reads == 1
    bench.check_nothing_left()


def test_variants_come_back_as_they_were(machine):
    bench = machine.bench
    for number, language in enumerate((b"de", b"en")):
        bench.ask(b"/", (b"accept-language", language))
        bench.origin[number].answer(language, FRESH, (b"vary", b"accept-language"))
    bench = machine.start()
    assert bench.ask(b"/", (b"accept-language", b"en")).body == b"en"
    assert bench.ask(b"/", (b"accept-language", b"de")).body == b"de"
    assert bench.ask(b"/", (b"accept-language", b"fr")).is_waiting


def test_what_memory_evicts_is_found_on_disk(machine):
    bench = machine.start(memory_bytes=100_000)
    for number in range(20):
        fill(bench, b"/%d" % number, b"x" * 10_000)
    assert machine.store.entry_count < 10
    asked = len(bench.origin)
    for number in range(20):
        assert bench.ask(b"/%d" % number).is_complete
    assert len(bench.origin) == asked


@pytest.mark.parametrize("cut", [0, 1, 15, 16, 30, -1, -33])
def test_a_file_cut_short_anywhere_is_never_served(machine, cut):
    fill(machine.bench)
    (file,) = machine.files()
    data = file.read_bytes()
    file.write_bytes(data[:cut])
    bench = machine.start()
    assert bench.ask().is_waiting
    assert machine.files() == [], "and is deleted"


def test_any_flipped_bit_is_noticed(machine):
    fill(machine.bench)
    (file,) = machine.files()
    data = file.read_bytes()
    assert decode_file(data, 100) is not None
    for at in range(len(data)):
        assert decode_file(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :], 100) is None
    position = data.index(b"hello")
    bench = machine.start()
    file.write_bytes(data[:position] + b"jello" + data[position + 5 :])
    guest = bench.ask()
    assert guest.is_waiting
    bench.origin[0].answer(b"anew")
    assert guest.body == b"anew"


def test_a_process_that_dies_in_the_middle_of_writing_leaves_nothing_that_is_served(machine):
    fill(machine.bench)
    (file,) = machine.files()
    data = file.read_bytes()
    file.unlink()
    file.with_name(file.name + ".part").write_bytes(data)
    (file.parent / "nonsense").write_bytes(b"edgetun-cache-1\n" + b"\xff" * 100)
    bench = machine.start()
    assert bench.ask().is_waiting, "what was not renamed into its place is not there"


def test_a_file_in_anothers_place_is_not_served(machine):
    fill(machine.bench, b"/a")
    fill(machine.bench, b"/b")
    first, second = machine.files()
    bench = machine.start()
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    assert bench.ask(b"/a").is_waiting


def test_what_was_purged_or_invalidated_does_not_come_back(machine):
    for target in (b"/a", b"/b/1", b"/b/2", b"/c", b"/d"):
        fill(machine.bench, target, b"x", FRESH, *([(b"cache-tag", b"t")] if target == b"/c" else []))
    store, now = machine.store, machine.time.now
    machine.time.advance(0.1)
    assert store.purge_prefix("team/shop", b"team/shop\0shop.test/b/", now) == 2
    assert store.purge_tag("team/shop", b"t", now) == 1
    machine.bench.ask(b"/a", method=b"POST")
    machine.bench.origin.exchanges[-1].answer(b"done")
    bench = machine.start()
    for target in (b"/a", b"/b/1", b"/b/2", b"/c"):
        assert bench.ask(target).is_waiting
    assert bench.ask(b"/d").is_complete
    assert machine.store.purge_tenant("team/shop", machine.time.now) == 1
    assert machine.files() == []
    assert purge


def test_what_is_purged_while_it_is_written_or_read_does_not_come_back(machine):
    bench = machine.bench
    machine.worker.is_held = True
    fill(bench)
    machine.time.advance(0.1)
    machine.store.purge_tenant("team/shop", machine.time.now)
    machine.worker.release()
    assert machine.files() == []
    machine.time.advance(0.1)
    fill(bench)
    bench = machine.start()
    machine.worker.is_held = True
    guest = bench.ask()
    machine.time.advance(0.1)
    machine.store.purge_tenant("team/shop", machine.time.now)
    machine.worker.release()
    assert guest.is_waiting
    assert len(bench.origin) == 1


def test_after_a_clock_that_went_back_nobody_knows_the_age_so_it_is_asked_for_again(machine):
    fill(machine.bench)
    machine.time.wall = lambda: 1_600_000_000.0
    assert machine.start().ask().is_waiting


def test_another_rule_or_another_tunnel_gets_nothing(machine):
    fill(machine.bench)
    assert machine.start(CacheRule(mode="override", ttl_s=5.0)).ask().is_waiting
    fill(machine.start())
    assert machine.start(tenant="team/other").ask().is_waiting


def test_the_disk_is_bounded_and_a_flood_of_one_tunnel_takes_nothing_from_a_small_one(tmp_path):
    machine = Machine(tmp_path / "cache", max_bytes=200_000)
    small = Bench(RULE, store=machine.store, time=machine.time, tenant="team/small")
    fill(small)
    for number in range(100):
        fill(machine.bench, b"/%d" % number, b"x" * 10_000)
    assert machine.disk.stored_bytes <= 200_000
    assert sum(path.stat().st_size for path in machine.files()) <= 200_000
    machine.start(tenant="team/small")
    assert machine.bench.ask().body == b"hello"
    shrunk = Machine(tmp_path / "cache", max_bytes=50_000)
    assert shrunk.disk.stored_bytes <= 50_000, "also when the bound became smaller"


def test_what_waits_to_be_written_is_bounded(machine):
    machine.max_bytes = 1 << 30
    bench = machine.start()
    machine.worker.is_held = True
    for number in range(30):
        fill(bench, b"/%d" % number, b"x" * 2_000_000)
    assert machine.disk.pending_bytes <= MAX_PENDING_BYTES
    assert machine.disk.refused > 0
    machine.worker.release()
    assert machine.disk.pending_bytes == 0


def test_a_hot_response_is_not_written_again_every_second(machine, monkeypatch):
    written: list[Path] = []
    really_write = DiskTier._write_file

    def count(path: Path, chunks: list[bytes]) -> None:
        written.append(path)
        really_write(path, chunks)

    monkeypatch.setattr(DiskTier, "_write_file", staticmethod(count))
    bench = machine.start(CacheRule(mode="override", ttl_s=1.0))
    fill(bench)
    for number in range(1, 21):
        machine.time.advance(1.0)
        bench.ask()
        if number % 2:
            bench.origin.exchanges[-1].answer_head(304, (TAG,), end=True)
        else:
            bench.origin.exchanges[-1].answer(b"%d" % number, TAG)
    assert 2 <= len(written) <= 4
    machine.time.advance(2.0)
    bench = machine.start(CacheRule(mode="override", ttl_s=1.0))
    bench.ask()
    assert bench.origin[0].head.get(b"if-none-match") == b'"1"'


def test_what_is_short_lived_or_partial_is_not_written(machine):
    fill(machine.bench, b"/short", b"x", (b"cache-control", b"max-age=2, stale-if-error=0"))
    machine.bench.ask(b"/part", (b"range", b"bytes=0-4"))
    machine.bench.origin.exchanges[-1].answer(b"hello", (b"content-range", b"bytes 0-4/9"), TAG, FRESH, status=206)
    machine.bench.ask(b"/head", method=b"HEAD")
    machine.bench.origin.exchanges[-1].answer(b"", FRESH)
    assert machine.files() == []


def test_a_full_disk_costs_the_files_and_nothing_else(machine, monkeypatch):
    def full(path: Path, chunks: list[bytes]) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(DiskTier, "_write_file", staticmethod(full))
    fill(machine.bench)
    assert machine.disk.entry_count == machine.disk.pending_bytes == 0
    assert machine.bench.ask().body == b"hello"


def test_a_folder_that_cannot_be_used_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        DiskTier(tmp_path / "file", 1000, lambda call, *args: call(*args), worker=Worker()).open()
