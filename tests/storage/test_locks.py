"""Whoever holds a file's lock keeps others out, and a file system without locks stops nobody."""

import fcntl
import os

import pytest

from ensemw2s.storage import locks, store
from ensemw2s.storage.locks import NO_LOCKS, locked


def test_a_lock_keeps_others_out_until_it_is_given_back(tmp_path):
    with locked(tmp_path / "lock"), pytest.raises(BlockingIOError), locked(tmp_path / "lock", wait=False):
        pass
    with locked(tmp_path / "lock", wait=False):
        pass


@pytest.mark.parametrize("number", NO_LOCKS)
def test_without_locks_the_work_goes_on_and_one_line_names_the_folder(tmp_path, monkeypatch, capsys, number):
    def no_locks(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(locks, "_said", set())
    with store.only_one(tmp_path), store.alone(tmp_path / "stage"):
        pass
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"warning: the file system of {tmp_path} has no locks" in said


def test_another_error_of_a_lock_is_raised(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="Input/output error"), locked(tmp_path / "lock"):
        pass
