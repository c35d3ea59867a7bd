import logging
import signal
import threading

import pytest

from diffmatch.interrupts import Interrupts


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_signal_waits_for_its_moment(number, error, caplog):
    reached = []

    def work() -> None:
        with Interrupts() as interrupts:
            interrupts.raise_pending()
            signal.raise_signal(number)
            reached.append("after the signal")
            interrupts.raise_pending()
            reached.append("never")

    with pytest.raises(error), caplog.at_level(logging.WARNING):
        work()
    assert reached == ["after the signal"]
    assert "a second signal stops at once" in caplog.text


def test_second_signal_raises_at_once():
    reached = []

    def work() -> None:
        with Interrupts():
            signal.raise_signal(signal.SIGINT)
            reached.append("after the first")
            signal.raise_signal(signal.SIGINT)
            reached.append("never")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached == ["after the first"]


@pytest.mark.parametrize("error", [None, ValueError])
def test_signal_is_not_lost_at_the_end_of_the_block(error):
    def work() -> None:
        with Interrupts():
            signal.raise_signal(signal.SIGINT)
            if error:
                raise error

    with pytest.raises(KeyboardInterrupt):
        work()


def test_status_after_termination_is_the_shells():
    with pytest.raises(SystemExit) as caught, Interrupts():
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 143


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interrupts():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_handlers_of_the_application_are_left_alone():
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with Interrupts() as interrupts:
            signal.raise_signal(signal.SIGINT)
            interrupts.raise_pending()
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.SIGINT]


def test_other_threads_can_use_it():
    ran: list[bool] = []

    def work() -> None:
        with Interrupts() as interrupts:
            interrupts.raise_pending()
            ran.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ran == [True]
