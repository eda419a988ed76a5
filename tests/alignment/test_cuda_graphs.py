"""The recorder of CUDA graphs, with the parts of torch.cuda that it uses pretended: order, pool and thread of a capture."""

import inspect
import threading
import weakref
from contextlib import contextmanager

import torch

from alignment.cuda_graphs import CudaRecorder, recorder_for


class PretendedCuda:
    """The parts of torch.cuda that a capture uses; `did` is what was done, in order."""

    def __init__(self, monkeypatch):
        self.did = did = []
        self.pools, self.graphs = [], []
        self.real_graph = torch.cuda.graph

        class Stream:
            def __init__(self, name):
                self.name = name

            def wait_stream(self, other):
                did.append(f"{self.name} waits for {other.name}")

        @contextmanager
        def on(stream):
            did.append(f"on {stream.name}")
            yield
            did.append(f"off {stream.name}")

        class Graph:
            def replay(self):
                did.append("replay")

            def pool(self):
                return f"pool of graph {id(self)}"

        @contextmanager
        def capturing(graph, **words):
            inspect.signature(self.real_graph).bind(graph, **words)
            assert words["capture_error_mode"] == "thread_local"
            did.append(f"capture on {words['stream'].name}")
            self.pools.append(words["pool"])
            self.graphs.append(weakref.ref(graph))
            yield
            did.append("captured")

        @contextmanager
        def device(device):
            yield

        properties = type("Properties", (), {"total_memory": 10**9})
        for name, value in {
            "Stream": lambda device: Stream("side"),
            "current_stream": lambda: Stream("current"),
            "stream": on,
            "CUDAGraph": Graph,
            "graph": capturing,
            "device": device,
            "get_device_properties": lambda device: properties,
        }.items():
            assert hasattr(torch.cuda, name)
            monkeypatch.setattr(torch.cuda, name, value)


def test_the_order_of_a_capture_is_that_of_the_documentation(monkeypatch):
    cuda = PretendedCuda(monkeypatch)
    recorder = recorder_for(torch.device("cuda"))
    assert isinstance(recorder, CudaRecorder) and recorder.room == 10**8
    replay = recorder.capture(lambda: cuda.did.append("step") or torch.ones(2))
    warm_up = ["side waits for current", "on side", "step", "step", "off side", "current waits for side"]
    assert cuda.did == [*warm_up, "capture on side", "step", "captured"]
    assert replay() is replay() and cuda.did[-2:] == ["replay", "replay"]


def test_steps_that_go_on_with_one_another_warm_up_in_turn_and_share_a_pool(monkeypatch):
    cuda = PretendedCuda(monkeypatch)
    steps = [lambda name=name: cuda.did.append(name) or torch.ones(2) for name in ("forward", "backward")]
    replays = CudaRecorder(torch.device("cuda")).capture_all(steps)
    assert cuda.did[2:6] == ["forward", "backward"] * 2
    captures = [["capture on side", name, "captured"] for name in ("forward", "backward")]
    assert cuda.did[8:] == [*captures[0], *captures[1]]
    assert cuda.pools == [None, cuda.graphs[0]().pool()] and len(replays) == 2


def test_graphs_share_the_pool_of_one_that_is_still_there(monkeypatch):
    cuda = PretendedCuda(monkeypatch)
    recorder = CudaRecorder(torch.device("cuda"))
    replays = [recorder.capture(lambda: None) for _ in range(2)]
    first, second = (graph() for graph in cuda.graphs)
    assert cuda.pools == [None, first.pool()]
    del first, second, replays
    recorder.capture(lambda: None)
    assert cuda.graphs[1]() is None and cuda.pools[2] is None


def test_nothing_is_captured_beside_the_main_thread(monkeypatch):
    PretendedCuda(monkeypatch)
    found = []
    thread = threading.Thread(target=lambda: found.append(recorder_for(torch.device("cuda"))))
    thread.start()
    thread.join()
    assert found == [None] and recorder_for(torch.device("cpu")) is None
