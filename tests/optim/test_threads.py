import multiprocessing
import sys
import threading

import pytest
import torch

from diffmatch.optim.threads import run_in_parts


@pytest.mark.parametrize("threads", [1, 3])
def test_parts_make_up_the_range(threads):
    parts, names = [], set()

    def kernel(scale: int, first: int, last: int) -> None:
        parts.append((scale * first, scale * last))
        names.add(threading.current_thread().name)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        run_in_parts(kernel, 2, total=100, least=10)
        run_in_parts(kernel, 2, total=15, least=10)
    finally:
        torch.set_num_threads(before)
    assert sorted(parts[:threads]) == [
        (2 * (100 * i // threads), 2 * (100 * (i + 1) // threads)) for i in range(threads)
    ]
    assert parts[threads:] == [(0, 30)]
    assert threading.current_thread().name in names


def test_errors_of_a_part_are_raised():
    def kernel(first: int, last: int) -> None:
        raise ArithmeticError(f"part from {first}")

    with pytest.raises(ArithmeticError, match="part from 0"):
        run_in_parts(kernel, total=10, least=100)


def _fill_in_a_child(queue) -> None:
    filled = []
    run_in_parts(lambda first, last: filled.extend(range(first, last)), total=100, least=10)
    queue.put(sorted(filled) == list(range(100)))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks")
def test_a_forked_process_starts_threads_of_its_own():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run_in_parts(lambda first, last: None, total=100, least=10)
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        child = context.Process(target=_fill_in_a_child, args=(queue,), daemon=True)
        child.start()
        child.join(30)
        assert child.exitcode == 0
        assert queue.get()
    finally:
        torch.set_num_threads(before)
