"""What a device does when it runs out of memory or fails, as typed errors."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sharp_demo.engine.condition import DEVICE_LOST, NO_MEMORY, Condition
from sharp_demo.errors import DeviceLostError, DeviceMemoryError, InputError
from sharp_demo.memory import trim_heaps


def is_out_of_memory(error: BaseException) -> bool:
    """Return True when an allocation failed, on whatever device."""
    said = str(error)
    failed = isinstance(error, RuntimeError) and (
        "CUDA error: out of memory" in said or "can't allocate memory" in said
    )
    return failed or isinstance(error, torch.OutOfMemoryError | MemoryError)


def is_device_lost(error: BaseException) -> bool:
    """Return True for errors (failed assertions, bad addresses) after which CUDA fails until the process ends."""
    return isinstance(error, RuntimeError) and "CUDA error" in str(error) and not is_out_of_memory(error)


@contextmanager
def typed_failures(condition: Condition) -> Iterator[None]:
    """Raise DeviceMemoryError and DeviceLostError for what the device raised, and note every fault in `condition`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        condition.error = f"{type(error).__name__}; the log has the details"
        if is_out_of_memory(error):
            condition.error = NO_MEMORY
            raise DeviceMemoryError(NO_MEMORY) from None  # its traceback would hold on to the tensors
        if is_device_lost(error):
            condition.error = condition.lost = DEVICE_LOST
            raise DeviceLostError(DEVICE_LOST) from error
        raise


def free_memory() -> None:
    """Return unused memory to the device and the system. Call it outside of `except`, whose traceback holds tensors."""
    gc.collect()
    trim_heaps()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
