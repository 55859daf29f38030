"""Typed errors. Each message is one line for the person who can act on it: what was wrong, the limit, what to do."""

EXIT_DEVICE_LOST = 70  # exit code of a process whose device is lost (EX_SOFTWARE): a supervisor restarts it


class SharpError(Exception):
    """Base of every error this package raises on purpose."""


class InputError(SharpError):
    """The request cannot be served as asked. Front ends show the message and exit with code 2."""


class VideoError(InputError):
    """The video file cannot be used.

    Parameters
    ----------
    kind : short machine-readable cause, one of `sharp_demo.video.ERROR_KINDS`.
    message : one line naming the cause and, where there is one, the limit.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class QuestionError(InputError):
    """The question is empty or too long."""


class ModelError(InputError):
    """The model cannot be loaded, or the request does not fit it."""


class MethodError(InputError):
    """A pruning method was asked for by a wrong name or with a wrong option."""


class UnsupportedError(InputError):
    """The pruning runtime cannot prune this call correctly, and refuses to do it wrongly."""


class DeviceError(SharpError):
    """The GPU cannot be had, or was taken away before the run ended: quota, queue, time."""


class DeviceMemoryError(InputError):
    """The request does not fit into the device's memory, nor does a smaller one that was tried in its place."""


class DeviceLostError(SharpError):
    """The device failed for good: only a new process can use it again."""


class InternalError(SharpError):
    """Something broke on our side; the message names the run whose log has the details, and nothing else."""
