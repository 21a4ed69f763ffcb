"""Workers leave signals to their parent."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from unidiff_core.data.workers import in_workers
from unidiff_core.foundation import interrupt


def worker():
    """A forked process that is at work when this returns."""
    ready, at_work = os.pipe()
    if (process := os.fork()) == 0:
        interrupt.leave_to_parent()
        os.write(at_work, b".")
        time.sleep(60)
        os._exit(7)
    os.read(ready, 1)
    return process


def send_by_another(process, number):
    if (sender := os.fork()) == 0:
        os.kill(process, number)
        os._exit(0)
    os.waitpid(sender, 0)


def code(process, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (found := os.waitpid(process, os.WNOHANG))[0]:
            return os.waitstatus_to_exitcode(found[1])
        time.sleep(0.01)
    return None


def is_at_work(process):
    try:  # whoever is to take up orphans may leave them as they ended
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_only_its_parent_ends_a_worker():
    process = worker()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        send_by_another(process, number)
    assert code(process, 0.3) is None
    os.kill(process, signal.SIGTERM)
    assert code(process, 10) == 0


def test_a_worker_ends_although_a_strangers_signal_hides_its_parents(monkeypatch):
    """Of two signals that are still to be heard one is lost, here always the parent's first."""
    ended = []
    terminate = BaseProcess.terminate

    def late(self):
        ended.append(self)
        if ended.count(self) > 1:
            terminate(self)

    monkeypatch.setattr(BaseProcess, "terminate", late)
    with pytest.raises(ValueError, match="no more"):
        for _ in in_workers(_once_then_long, 2, 2):
            pytest.fail("the second is never done")
    assert len(ended) >= 2


def _once_then_long(i):
    if not i:
        raise ValueError("no more")
    time.sleep(60)


def test_a_worker_ends_with_its_parent(monkeypatch):
    monkeypatch.setattr(interrupt, "SECONDS", 0.05)
    ready, number = os.pipe()
    if (parent := os.fork()) == 0:
        os.write(number, str(worker()).encode())
        os._exit(0)
    orphan = int(os.read(ready, 20))
    os.waitpid(parent, 0)
    end = time.monotonic() + 10
    while is_at_work(orphan) and time.monotonic() < end:
        time.sleep(0.02)
    assert not is_at_work(orphan)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_group_of_workers_ends_without_a_word(tmp_path, number):
    """Whoever is at the work's head says what there is to say; the pieces that were done stay."""

    def piece(i):
        (tmp_path / str(i)).touch()
        time.sleep(0.1 if i < 2 else 60)
        return i

    if (process := os.fork()) == 0:
        os.setpgid(0, 0)
        errors = os.open(tmp_path / "said", os.O_CREAT | os.O_WRONLY)
        os.dup2(errors, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        given = []
        try:
            with interrupt.interruptible():
                for done in in_workers(piece, 4, 2):
                    given.append(done)
                    (tmp_path / f"given {done}").touch()
        except interrupt.Interrupted as stop:
            os._exit(stop.code if given == [0, 1] else 1)
        os._exit(0)
    end = time.monotonic() + 30
    while not ((tmp_path / "3").exists() and (tmp_path / "given 1").exists()) and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.2)
    os.killpg(process, number)
    assert code(process, 20) == 128 + number
    assert (tmp_path / "said").read_text() == ""
