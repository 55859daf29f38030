"""Shut the decoding child in: no network, no other programs, no files but the video, its folder and the libraries.

Linux only and without privileges: a seccomp filter for the network and for what could get around it, Landlock for
files (kernel 5.13 and later). Both hold for this process and the threads it starts from then on, for good. Where the
system offers one of them not, the child goes on with the other and its limits, and says which is missing.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2  # prctl
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # Landlock's system calls, equal on all architectures
_BENEATH, _VERSION = 1, 1

# linux/landlock.h
_WRITE_FILE, _READ_FILE, _READ_DIR, _MAKE_REG, _TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 8, 1 << 14
_OF_FILES = 1 | _WRITE_FILE | _READ_FILE | _TRUNCATE
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # how many file rights a version knows; from 5 on 16
_TCP, _SCOPES = 3, 3  # bind and connect (from version 4); abstract sockets and signals (from version 6)

# What the dynamic linker, Python and the decoders read besides their own folders.
_SYSTEM = (
    "/usr", "/lib", "/lib64", "/nix/store", "/etc/ld.so.cache", "/dev/null", "/dev/urandom", "/sys/devices/system",
    "/proc/self", "/proc/cpuinfo", "/proc/meminfo",
)  # fmt: skip

# Architecture (linux/audit.h) and numbers of the system calls that are refused: first those that make, or use,
# sockets; io_uring, which can do the same; then new programs and namespaces, and other processes' memory.
_REFUSED = {
    "x86_64": (
        0xC000003E,
        (41, 42, 43, 44, 46, 49, 50, 288, 307, 425, 426, 427, 59, 322, 272, 308, 101, 310, 311, 321),
    ),
    "aarch64": (
        0xC00000B7,
        (198, 200, 201, 202, 203, 206, 211, 242, 269, 425, 426, 427, 221, 281, 97, 268, 117, 270, 271, 280),
    ),
}
_X32 = 0x40000000  # numbers from here on are x86-64's second set of system calls


def isolate(video: str, folder: str, package_root: str) -> list[str]:
    """Shut this process in for good; return what the system does not offer: "network", "files", both, or nothing.

    Parameters
    ----------
    video : the file that may be read. folder : where files may be made.
    package_root : the folder that holds this package, of which only the package is readable.
    """
    if sys.platform != "linux":
        return ["network", "files"]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        return ["network", "files"]
    missing = [] if _close_files(libc, video, folder, package_root) else ["files"]
    return missing if _close_network(libc) else ["network", *missing]


def _close_network(libc: ctypes.CDLL) -> bool:
    """Install a filter by which the refused system calls fail with EPERM (seccomp(2), linux/bpf_common.h)."""
    if platform.machine() not in _REFUSED or sys.maxsize < 1 << 32:
        return False
    architecture, numbers = _REFUSED[platform.machine()]
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    refuse, allow = 0x00050000 | 1, 0x7FFF0000  # SECCOMP_RET_ERRNO with EPERM; SECCOMP_RET_ALLOW
    count = len(numbers)
    # Jumps count instructions to skip; the last two are "allow" and "refuse".
    steps = [(load, 0, 0, 4), (equal, 0, count + 3, architecture), (load, 0, 0, 0), (at_least, count + 1, 0, _X32)]
    steps += [(equal, count - place, 0, number) for place, number in enumerate(numbers)]
    steps += [(answer, 0, 0, allow), (answer, 0, 0, refuse)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
    return libc.prctl(_SET_SECCOMP, _FILTER, program, 0, 0) == 0


def _close_files(libc: ctypes.CDLL, video: str, folder: str, package_root: str) -> bool:
    """Restrict files (and, where known, TCP, signals and abstract sockets) by Landlock (landlock(7))."""
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    if version < 1:
        return False
    handled = (1 << _RIGHTS.get(version, 16)) - 1
    fields = [handled, _TCP, _SCOPES][: 1 if version < 4 else 2 if version < 6 else 3]
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    ruleset = libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return False
    try:
        readable = _READ_FILE | _READ_DIR
        made = readable | _WRITE_FILE | _MAKE_REG | _TRUNCATE
        rules = [(video, _READ_FILE), (folder, made), (package_root, _READ_DIR)]
        rules += [(path, readable) for path in _libraries(package_root)]
        for path, rights in rules:
            if not _allow(libc, ruleset, path, rights & handled) and path == folder:
                return False
        return libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0
    finally:
        os.close(ruleset)


def _libraries(package_root: str) -> Iterable[str]:
    """Return what is read to import and run a decoder."""
    yield from _SYSTEM
    yield from (sys.prefix, sys.base_prefix, str(Path(__file__).parents[1]))
    yield from (path for path in sys.path if path and (path != package_root or path.endswith("-packages")))


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> bool:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if not os.path.isdir(path):
            rights &= _OF_FILES
        return libc.syscall(_ADD_RULE, ruleset, _BENEATH, struct.pack("=Qi", rights, place), 0) == 0
    finally:
        os.close(place)
