import threading

import pytest
import torch

from isthmus.core.progress import SilentProgress
from isthmus.workflows.thread_shares import SharingProgress, ThreadShares


@pytest.fixture(autouse=True)
def threads_put_back():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def threads_of_one(shares, most=8):
    shares.take(most)
    return torch.get_num_threads()


def test_two_workers_have_half_each_and_the_last_one_everything():
    shares = ThreadShares(4, waiting=2, n_parallel=2)
    entered, leave, seen = threading.Barrier(2), threading.Event(), []

    def other():
        with shares.working():
            entered.wait()
            seen.append(threads_of_one(shares))
            leave.wait(timeout=10)

    thread = threading.Thread(target=other)
    thread.start()
    with shares.working():
        entered.wait()
        assert threads_of_one(shares) == 2
        leave.set()
        thread.join()
        assert seen == [2]
        assert threads_of_one(shares) == 4


def test_workers_that_wait_keep_their_share_only_where_they_may_start():
    many = ThreadShares(4, waiting=4, n_parallel=2)
    with many.working():
        assert threads_of_one(many) == 2
    alone = ThreadShares(4, waiting=3, n_parallel=1)
    with alone.working():
        assert threads_of_one(alone) == 4


def test_nobody_gets_more_than_is_of_use_or_less_than_one():
    shares = ThreadShares(1, waiting=3, n_parallel=3)
    with shares.working():
        assert threads_of_one(shares) == 1
    wide = ThreadShares(16, waiting=1, n_parallel=1)
    with wide.working():
        assert threads_of_one(wide, most=2) == 2


def test_progress_takes_the_present_share_at_every_sign_of_life():
    shares = ThreadShares(4, waiting=2, n_parallel=2)
    progress = SharingProgress(SilentProgress(), shares, most=4)
    with shares.working(), progress.stage("work") as advance:
        assert torch.get_num_threads() == 2
        with shares.working():
            pass
        advance(1)
        assert torch.get_num_threads() == 4


def test_work_that_nobody_waits_for_any_more_ends_at_its_next_sign_of_life():
    shares = ThreadShares(2, waiting=1, n_parallel=1)
    progress = SharingProgress(SilentProgress(), shares, 1)
    with shares.working(), progress.stage("count", 2) as advance:
        advance(1)
        shares.is_stopped.set()
        with pytest.raises(KeyboardInterrupt):
            advance(1)
