"""What a server's own metrics say of its adapters."""

from __future__ import annotations

from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from policies.records import Record

# All that vLLM (0.32) says by adapter. Each set of adapters at work is a series of its own, whose
# value is the time at which it was seen; those that hold no more stay. An adapter with any request
# stands among those that run and among those that wait.
LORA_INFO: Final = "vllm:lora_requests_info"


class AdapterLoad(Record):
    """The adapters of which requests run or wait, by name; `slots` is how many adapters may meet
    in one step (`max_loras`), None where the server has not said anything yet."""

    slots: int | None = None
    busy: tuple[str, ...] = ()


def adapter_load(text: str) -> AdapterLoad:
    """Of metrics in Prometheus' text format; raises `ValueError`."""
    lines = [line for line in text.splitlines() if line.startswith(LORA_INFO + "{")]
    samples = [
        sample
        for family in text_string_to_metric_families("\n".join(lines) + "\n")
        for sample in family.samples
    ]
    if not samples:
        return AdapterLoad()
    latest = max(samples, key=lambda sample: sample.value).labels
    listed = f"{latest['running_lora_adapters']},{latest['waiting_lora_adapters']}"
    busy = {name for name in listed.split(",") if name}
    return AdapterLoad(slots=int(latest["max_lora"]), busy=tuple(sorted(busy)))
