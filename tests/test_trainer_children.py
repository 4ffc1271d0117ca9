# SPDX-License-Identifier: Apache-2.0
"""Children that a user's code makes inside a run: the trainer's signal handlers are not theirs."""

import multiprocessing
import os
import signal
import time

import pytest

from rlkern.runs import interrupt as signals
from rlkern.runs.interrupt import Interrupt

FORK = multiprocessing.get_context("fork")


def _forever():
    while True:
        time.sleep(0.05)


def _handlers(pipe):
    pipe.send([signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)])
    pipe.send(signal.pthread_sigmask(signal.SIG_BLOCK, ()))


def _double(x):
    return 2 * x


def test_a_child_made_inside_a_run_ends_by_sigterm():
    with Interrupt() as interrupt:
        child = FORK.Process(target=_forever)
        child.start()
        child.terminate()  # at once: a signal before the child has begun counts too
        child.join(10)
        ended = child.exitcode
        child.kill()
    assert ended == -signal.SIGTERM and not interrupt.asked


def test_a_child_has_the_handlers_and_the_mask_from_before_the_run():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        with Interrupt():
            ours, theirs = FORK.Pipe()
            child = FORK.Process(target=_handlers, args=(theirs,))
            child.start()
            assert ours.recv() == before
            assert ours.recv() == {signal.SIGUSR1}
            child.join()
            # In the run itself they are as they were.
            assert signal.getsignal(signal.SIGTERM) not in before
            assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == {signal.SIGUSR1}
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_signals_wait_until_a_child_has_its_own_handlers():
    with Interrupt():
        signals._hold()
        held = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        signals._release()
    assert {signal.SIGTERM, signal.SIGINT} <= held


def test_a_pool_inside_a_run_ends_every_time():
    others = set(multiprocessing.active_children())  # of other tests in this process
    with Interrupt():
        for _ in range(8):
            with FORK.Pool(2) as pool:
                assert pool.map(_double, range(4)) == [0, 2, 4, 6]
            assert not set(multiprocessing.active_children()) - others


def test_the_run_itself_still_asks_first_and_stops_at_the_second_time():
    with Interrupt() as interrupt, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.asked
        os.kill(os.getpid(), signal.SIGTERM)
