"""What the child process gives up before it runs a statement. `GUARDS` names each thing, for the tests.

Two layers are there only where the kernel allows them, and never required: Landlock (https://docs.kernel.org/
userspace-api/landlock.html), which takes away every way to change a file system and to read what no database is, and
a network namespace of its own, in which there is no network.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import math
import os
import resource
import signal
import struct
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from spftsql.sandbox.result import Limits

GUARDS = {
    "PDEATHSIG": "outliving the parent",
    "working folder": "files made under a relative name: the folder is gone",
    "CORE": "core dumps",
    "FSIZE": "writing to any file",
    "NOFILE": "more than 64 open files",
    "AS": "more memory than memory_mb",
    "CPU": "running on while the parent, which watches the clock, is stopped",
    "Landlock": "writing, making, removing and executing files; reading any but databases and Python's own",
    "network": "connecting to anything",
}
LAYERS = ("Landlock", "network")

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_OPEN_FILES = 64
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000

# Landlock's system calls, which have these numbers on every architecture but Alpha.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION, _PATH_BENEATH = 1, 1  # flag of the first, kind of rule of the second
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
# The rights to handle from a version on. Of files: execute, write, read, list, remove and make (nine kinds); move
# between folders; truncate; ioctl on devices. Of the network: bind and connect TCP. Of scopes: abstract Unix sockets
# and signals beyond the process itself.
_FILE_RIGHTS = ((1, (1 << 13) - 1), (2, 1 << 13), (3, 1 << 14), (5, 1 << 15))
_NETWORK_RIGHTS = ((4, 0b11),)
_SCOPES = ((6, 0b11),)
_SIGNALS = 0b10

# What an engine may look at while it runs: libraries that it loads late, the time zone, random numbers.
_SYSTEM = (
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache"),
    *("/etc/localtime", "/usr/share/zoneinfo", "/dev/null", "/dev/urandom"),
    *("/proc/self/cgroup", "/sys/fs/cgroup"),  # DuckDB aborts where these are there and cannot be read
)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def raise_fence(
    parent: int, limits: Limits, readable: Sequence[str] | None, without: frozenset[str] = frozenset()
) -> dict[str, str]:
    """Takes everything away from this process that a statement does not need; there is no way back.

    `readable` are the databases' files and folders; None for an engine behind a socket, which keeps the network and
    may read what its client library needs. `without` names guards to leave out, for the tests.

    Returns:
        For each of `LAYERS` why it is not there, or an empty text.

    Raises:
        OSError: something that is required cannot be done.
    """
    layers = dict.fromkeys(LAYERS, "left out")
    if "network" not in without:
        layers["network"] = "needed to reach the server" if readable is None else _leave_network()
    if "PDEATHSIG" not in without:
        _check(_libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL)))
        if os.getppid() != parent:
            os._exit(0)  # the parent died before the kernel was asked
    if "working folder" not in without:
        os.rmdir(os.getcwd())  # in a folder that is gone no file can be made, and none is left behind
    if "Landlock" not in without:
        layers["Landlock"] = _landlock(readable)
    for name, limited, value in (
        ("CORE", resource.RLIMIT_CORE, 0),
        ("FSIZE", resource.RLIMIT_FSIZE, 0),
        ("NOFILE", resource.RLIMIT_NOFILE, _OPEN_FILES),
        ("AS", resource.RLIMIT_AS, limits.memory_mb * 2**20),
    ):
        if name not in without:
            resource.setrlimit(limited, (value, value))
    gc.freeze()
    return layers


def bound_cpu_time(limits: Limits) -> None:
    """For the case that the parent, which watches the clock on the wall, is itself stopped."""
    seconds = math.ceil(time.process_time() + limits.hard_seconds) + 1
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, hard))


def _leave_network() -> str:
    """Moves to a network namespace with nothing in it; says why that is not possible, or nothing.

    Without privileges this takes a user namespace, in which the process is the same user to every file. A process with
    some of root's capabilities would lose them to it, and with them perhaps the right to read a database.
    """
    flags = _CLONE_NEWNET if _has_capabilities() else _CLONE_NEWNET | _CLONE_NEWUSER
    return "" if _libc.unshare(flags) == 0 else _reason("unshare")


def _has_capabilities() -> bool:
    lines = Path("/proc/self/status").read_bytes().splitlines()
    return any(int(line.split()[1], 16) for line in lines if line.startswith(b"CapEff:"))


def _landlock(readable: Sequence[str] | None) -> str:
    """Restricts this process to reading; says why that is not possible, or nothing.

    Rights that this kernel does not know are left out; a kernel that knows more does not take away what is not asked.
    """
    version = _call(_CREATE_RULESET, None, 0, _VERSION)
    if version < 0:
        return _reason("landlock_create_ruleset")
    files = _rights(_FILE_RIGHTS, version)
    network = _rights(_NETWORK_RIGHTS, version)
    scopes = _rights(_SCOPES, version)
    if readable is None:
        files, network, scopes = files & ~(_READ_FILE | _READ_DIR), 0, scopes & _SIGNALS
    attributes = struct.pack("=QQQ", files, network, scopes)
    # Longer than an old kernel's structure is fine as long as what it does not know is zero.
    ruleset = _call(_CREATE_RULESET, attributes, len(attributes), 0)
    if ruleset < 0:
        return _reason("landlock_create_ruleset")
    try:
        if readable is not None:
            for path in (*_SYSTEM, *_python(), *readable):
                _allow_reading(ruleset, path)
        if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            return _reason("prctl")
        return "" if _call(_RESTRICT_SELF, ruleset, 0) == 0 else _reason("landlock_restrict_self")
    finally:
        os.close(ruleset)


def _rights(rights: Iterable[tuple[int, int]], version: int) -> int:
    known = 0
    for since, bits in rights:
        known |= bits if version >= since else 0
    return known


def _allow_reading(ruleset: int, path: str) -> None:
    """Allows to read a file, or all below a folder; nothing where there is no such path."""
    try:
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rights = _READ_FILE | _READ_DIR if os.path.isdir(path) else _READ_FILE
        _check(_call(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, beneath), 0))
    finally:
        os.close(beneath)


def _python() -> list[str]:
    package = Path(__file__).parents[1]
    return sorted({sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix, str(package)})


def _call(number: int, *arguments: int | bytes | None) -> int:
    # Every number as a long: the C function takes any, and would leave half of a register unset for an int.
    given = (ctypes.c_long(value) if isinstance(value, int) else value for value in arguments)
    outcome: int = _libc.syscall(ctypes.c_long(number), *given)
    return outcome


def _check(outcome: int) -> None:
    if outcome < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _reason(call: str) -> str:
    number = ctypes.get_errno()
    known = {
        errno.ENOSYS: "the kernel does not have it",
        errno.EOPNOTSUPP: "switched off in the kernel",
        errno.EPERM: "not permitted here",
        errno.ENOSPC: "no more namespaces allowed here",
        errno.EUSERS: "no more namespaces allowed here",
    }
    return f"{call}: {known.get(number, os.strerror(number))}"
