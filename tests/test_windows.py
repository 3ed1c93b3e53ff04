"Corner cases of windows: devices, memory that is missing, and the thread that gathers ahead."

import gc
import threading
from unittest import mock

import numpy as np
import psutil
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from ecgmm import EcgmmError, windows
from ecgmm.store import prepare
from ecgmm.synthetic import synthesize
from ecgmm.windows import Batches, Windows, accelerator_for, choose_device


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("windows")
    synthesize(folder / "hospitals", n=40, seed=0)
    return prepare(folder / "hospitals", folder / "store", workers=1, progress=False)


@pytest.mark.parametrize(
    "cuda, mps, device",
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_the_first_device_that_there_is(monkeypatch, cuda, mps, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose_device() == torch.device(device)
    assert choose_device(cpu=True) == torch.device("cpu")


@pytest.fixture
def accelerate_state():
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def begun_on(monkeypatch, device):
    "Let accelerate decide for a device, here one that nobody has."
    with monkeypatch.context() as m:
        m.setenv("ACCELERATE_TORCH_DEVICE", device)
        assert Accelerator().device.type == device


def test_the_cpu_after_a_run_on_another_device(monkeypatch, accelerate_state):
    begun_on(monkeypatch, "meta")
    with pytest.raises(ValueError, match="restart your runtime"):
        Accelerator(cpu=True)  # what accelerate does
    assert accelerator_for(cpu=True).device.type == "cpu"


def test_another_device_after_a_run_on_the_cpu(monkeypatch, accelerate_state):
    begun_on(monkeypatch, "cpu")
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "meta")  # stands for a GPU
    assert Accelerator().device.type == "cpu"  # accelerate stays, silently
    monkeypatch.setattr(
        windows, "choose_device", lambda cpu=False: torch.device("cpu" if cpu else "meta")
    )
    assert accelerator_for().device.type == "meta"
    assert accelerator_for().device.type == "meta"
    with pytest.raises(EcgmmError, match="unset ACCELERATE_TORCH_DEVICE"):
        accelerator_for(cpu=True)


def test_a_group_of_processes_keeps_its_device(monkeypatch, accelerate_state):
    begun_on(monkeypatch, "meta")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with pytest.raises(EcgmmError, match="this group work on meta, cpu is needed"):
        accelerator_for(cpu=True)


def test_free_memory(monkeypatch):
    cpu = torch.device("cpu")
    with mock.patch.object(psutil, "virtual_memory", lambda: mock.Mock(available=123)):
        assert windows._free_memory(cpu) == 123
    with mock.patch.object(torch.cuda, "mem_get_info", lambda device: (77, 100)):
        assert windows._free_memory(torch.device("cuda")) == 77
    resource = pytest.importorskip("resource")  # a limit on the address space counts as well
    used = psutil.Process().memory_info().vms
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (used + 1_000_000, 0))
    assert 0 <= windows._free_memory(cpu) <= 2_000_000
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1, 1))
    assert windows._free_memory(cpu) == 0


def failing(error):
    def zeros(*args, **options):
        raise error

    return mock.patch.object(torch, "zeros", zeros)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        RuntimeError("MPS backend out of memory"),
    ],
    ids=["python", "cuda", "cpu", "mps"],
)
def test_samples_that_do_not_fit_stay_on_the_disk(store, capsys, error):
    rows, record = np.arange(len(store)), torch.arange(len(store))
    with failing(error):
        on_disk = Windows(store, rows)
    line = capsys.readouterr().err
    assert "do not fit into the memory of cpu: they are read from the disk" in line
    assert line.count("\n") == 1 and not on_disk.resident
    wanted = Windows(store, rows, resident=True).gather(record, 0 * record)
    assert torch.equal(on_disk.gather(record, 0 * record), wanted)
    with failing(error), pytest.raises(EcgmmError, match="without resident=True"):
        Windows(store, rows, resident=True)


def test_another_error_is_not_taken_for_missing_memory(store):
    with failing(RuntimeError("a bug")), pytest.raises(RuntimeError, match="a bug"):
        Windows(store, [0])


def threads():
    return [t for t in threading.enumerate() if t.name == "ecgmm windows ahead"]


def test_a_pass_that_is_given_up_leaves_no_thread(store):
    lazy = Batches(Windows(store, np.arange(len(store)), resident=False), batch_size=16)
    for seed in range(5):
        for _ in lazy.epoch(seed):
            break  # the generator is forgotten
        closed = lazy.epoch(seed)
        next(closed)
        closed.close()
    gc.collect()
    for thread in threads():
        thread.join()
    assert not threads()


def test_a_thread_does_not_run_too_far_ahead():
    made = []

    def counted():
        for k in range(100):
            made.append(k)
            yield k

    ahead = windows._ahead(counted(), depth=4)
    assert [next(ahead) for _ in range(10)] == list(range(10))
    ahead.close()
    for thread in threads():
        thread.join()
    assert len(made) <= 10 + 4 + 1


def test_an_error_of_the_thread_is_raised_where_the_items_are_used():
    def broken():
        yield 1
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(windows._ahead(broken()))
