"""A signal is remembered once, and handlers are put back."""

import os
import signal
import threading

import pytest

from anybatch.train.stop import SIGNALS, StopRequest


@pytest.fixture(autouse=True)
def default_handlers():
    """As a process in the foreground has them; what pytest had is put back."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_remembered_and_the_next_one_is_as_usual(number):
    heard = []
    signal.signal(number, lambda *received: heard.append(received[0]))
    with StopRequest() as stop:
        assert stop.signal is None
        os.kill(os.getpid(), number)
        assert stop.signal is number
        assert not heard
        os.kill(os.getpid(), number)
        assert heard == [number]
    os.kill(os.getpid(), number)
    assert heard == [number, number]


def test_a_notice_is_said_at_the_first_signal_alone(capfd):
    signal.signal(signal.SIGTERM, lambda *received: None)
    with StopRequest("the run stops soon.") as stop:
        assert capfd.readouterr().err == ""
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal is signal.SIGTERM
    assert capfd.readouterr().err == "anybatch: SIGTERM, the run stops soon.\n"


def test_after_the_first_signal_ctrl_c_interrupts():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal is signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_put_back_whatever_happens():
    before = [signal.getsignal(number) for number in SIGNALS]

    def fail():
        with StopRequest():
            assert [signal.getsignal(number) for number in SIGNALS] != before
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_signal_that_is_ignored_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal is None
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_another_thread_catches_nothing():
    before = [signal.getsignal(number) for number in SIGNALS]
    found = []

    def enter():
        with StopRequest() as stop:
            found.append((stop.signal, [signal.getsignal(number) for number in SIGNALS]))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [(None, before)]
