"""Files that HDF5 must not write any more: a log that cannot be written, a log in a forked process.

HDF5 would try again at exit, and crash; so the file descriptor is pointed at the null device.
"""

from __future__ import annotations

import contextlib
import os
import weakref

import h5py

_descriptors: weakref.WeakKeyDictionary[object, int] = weakref.WeakKeyDictionary()


def abandon(file: h5py.File) -> None:
    """Close a file that cannot be written any more."""
    if file:
        _disconnect(int(file.id.get_vfd_handle()))
        with contextlib.suppress(Exception):  # known: the file cannot be written
            file.close()


def keep_from_forks(writer: object, descriptor: int) -> None:
    """Have a forked process, a DataLoader's worker say, not write a writer's file."""
    _descriptors[writer] = descriptor


def forget(writer: object) -> None:
    """Forget a writer whose file is closed: its descriptor may soon be another file's."""
    _descriptors.pop(writer, None)


def _disconnect(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, descriptor)
    os.close(null)


def _disconnect_child() -> None:
    for descriptor in _descriptors.values():
        _disconnect(descriptor)
    _descriptors.clear()


os.register_at_fork(after_in_child=_disconnect_child)
