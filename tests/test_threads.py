"""Libraries keep to one thread a call beside the program's own threads, and get theirs back."""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from cervicyte.images.threads import OF_NUMPY, one_thread_a_call, one_thread_beside_a_network
from cervicyte.inference.classifier import Classifier
from cervicyte.inference.predict import rows_here, rows_of_batch
from cervicyte.inference.sources import sources_of
from cervicyte.network.description import shipped_model


def of_numpy() -> set[int]:
    return {one["num_threads"] for one in threadpool_info() if one["prefix"] == OF_NUMPY}


@pytest.fixture
def two_threads():
    """OpenCV and NumPy with two threads each, whatever the machine and the tests before left them."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(2)
    with threadpool_limits(2, "blas"):
        if of_numpy() != {2}:
            pytest.skip("NumPy's products are not OpenBLAS's here, or have one thread")
        yield
    cv2.setNumThreads(threads)


@pytest.mark.parametrize("one_thread", [one_thread_a_call, one_thread_beside_a_network])
def test_opencv_and_products_have_one_thread_and_get_theirs_back(two_threads, one_thread):
    def work() -> None:
        with one_thread():
            assert cv2.getNumThreads() == 1
            assert of_numpy() == {1}
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        work()

    assert cv2.getNumThreads() == 2
    assert of_numpy() == {2}


def test_whoever_leaves_last_gives_back_what_there_was_before_the_first(two_threads):
    first, second = one_thread_beside_a_network(), one_thread_beside_a_network()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert (cv2.getNumThreads(), of_numpy()) == (1, {1})
    second.__exit__(None, None, None)
    assert (cv2.getNumThreads(), of_numpy()) == (2, {2})


def test_a_network_keeps_its_threads(two_threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with one_thread_beside_a_network():
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_table_is_made_with_one_thread_a_call(two_threads, monkeypatch, tmp_path):
    path = tmp_path / "cell.png"
    cv2.imwrite(str(path), np.full((40, 50, 3), 200, np.uint8))
    classifier = Classifier.from_file(shipped_model(), engine="openvino")
    seen: list[tuple[int, set[int]]] = []
    judge = type(classifier.answerer).predictions

    def judged(*arguments):
        seen.append((cv2.getNumThreads(), of_numpy()))
        return judge(*arguments)

    monkeypatch.setattr(type(classifier.answerer), "predictions", judged)
    here = [row for rows in rows_here(classifier, sources_of([str(path)])) for row in rows]
    with ThreadPoolExecutor(1) as threads:
        of_a_worker = rows_of_batch(classifier, list(sources_of([str(path)])), threads)

    assert here == of_a_worker
    assert seen == [(1, {1})] * 2
    assert cv2.getNumThreads() == 2
