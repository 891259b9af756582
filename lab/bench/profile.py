"""What a step spends its time on: a trace for a viewer, and its largest kernels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from engine.runtime.devices import Runtime

LARGEST = 10  # kernels that are listed
LONGEST_NAME = 80


def profiled(step: Callable[[], Any], runtime: Runtime, file: Path) -> list[dict[str, Any]]:
    """Write a Chrome trace of one step, and return the kernels that took the most time: on CUDA those of the device."""
    on_cuda = runtime.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_cuda) as record:
        step()
        runtime.synchronize()
    file.parent.mkdir(parents=True, exist_ok=True)
    record.export_chrome_trace(str(file))
    spent = {
        event.key: (event.self_device_time_total if on_cuda else event.self_cpu_time_total, event.count)
        for event in record.key_averages()
        if event.device_type.name == ("CUDA" if on_cuda else "CPU")
    }
    total = sum(microseconds for microseconds, _ in spent.values()) or 1
    largest = sorted(spent.items(), key=lambda entry: -entry[1][0])[:LARGEST]
    return [
        {"name": name[:LONGEST_NAME], "ms": round(spent / 1000, 2), "share": round(spent / total, 3), "calls": calls}
        for name, (spent, calls) in largest
    ]
