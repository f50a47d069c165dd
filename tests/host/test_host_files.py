"""Files that are whole or not there; private directories; the one lock."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.host.files import (
    FileAbsentError,
    LockHeldError,
    StorageError,
    StorageFullError,
    lock_exclusive,
    make_private_directory,
    read_bounded,
    remove_scratch,
    write_atomic,
)

ROOT = Path(__file__).parents[2]


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_a_file_is_written_whole_with_its_mode(tmp_path: Path):
    path = tmp_path / "file"
    old_umask = os.umask(0)
    try:
        write_atomic(path, b"one" * 100_000)
        assert (path.read_bytes(), mode_of(path)) == (b"one" * 100_000, 0o600)
    finally:
        os.umask(old_umask)
    write_atomic(path, b"", mode=0o644)
    assert (path.read_bytes(), mode_of(path)) == (b"", 0o644)
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path):
    (tmp_path / "elsewhere").write_bytes(b"precious")
    (tmp_path / "file").symlink_to(tmp_path / "elsewhere")
    write_atomic(tmp_path / "file", b"new")
    assert (tmp_path / "elsewhere").read_bytes() == b"precious"
    assert not (tmp_path / "file").is_symlink()


def test_a_reader_that_has_the_old_file_open_keeps_it(tmp_path: Path):
    write_atomic(tmp_path / "file", b"old")
    with (tmp_path / "file").open("rb") as reader:
        write_atomic(tmp_path / "file", b"new")
        assert reader.read() == b"old"


def test_a_write_that_fails_changes_and_leaves_nothing(tmp_path: Path):
    write_atomic(tmp_path / "file", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StorageError, match=r"cannot write .*/file: File too large"):
            write_atomic(tmp_path / "file", b"x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.fixture
def small_disk(short_dir: Path) -> Iterator[Path]:
    disk = short_dir / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=0700", "ea-files-test", str(disk)]
    subprocess.run(mount, check=True)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.root
def test_a_full_disk_is_said_and_changes_nothing(small_disk: Path):
    write_atomic(small_disk / "file", b"old")
    with pytest.raises(StorageFullError) as caught:
        write_atomic(small_disk / "file", b"x" * 100_000)
    assert caught.value.code == "disk_full"
    assert [p.name for p in small_disk.iterdir()] == ["file"]
    assert (small_disk / "file").read_bytes() == b"old"


@pytest.mark.root
def test_no_inode_left_is_a_full_disk_too(small_disk: Path):
    remount = ["mount", "-o", "remount,nr_inodes=2", str(small_disk)]
    subprocess.run(remount, check=True)
    write_atomic(small_disk / "file", b"old")
    with pytest.raises(StorageFullError):
        write_atomic(small_disk / "other", b"new")
    with pytest.raises(StorageFullError):
        make_private_directory(small_disk / "directory")


def test_writing_into_a_directory_that_is_not_there_is_said(tmp_path: Path):
    with pytest.raises(FileAbsentError, match="No such file or directory"):
        write_atomic(tmp_path / "absent" / "file", b"")


def test_what_a_killed_write_left_is_removed(tmp_path: Path):
    (tmp_path / ".0123456789abcdef.new").write_bytes(b"half")
    (tmp_path / "kept.new").write_bytes(b"ours")
    remove_scratch(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["kept.new"]


def test_reading_is_bounded(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"12345")
    assert read_bounded(tmp_path / "file", 5) == b"12345"
    with pytest.raises(StorageError, match="longer than 4 bytes"):
        read_bounded(tmp_path / "file", 4)


def test_reading_what_is_no_file_is_refused_without_waiting(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="not a regular file"):
        read_bounded(tmp_path / "pipe", 10)
    with pytest.raises(StorageError, match="not a regular file"):
        read_bounded(Path("/dev/zero"), 10)
    with pytest.raises(StorageError, match=r"[Dd]irectory|regular"):
        read_bounded(tmp_path, 10)
    with pytest.raises(FileAbsentError):
        read_bounded(tmp_path / "absent", 10)


def test_a_private_directory_is_made_with_those_above_it(tmp_path: Path):
    make_private_directory(tmp_path / "a" / "b")
    assert mode_of(tmp_path / "a" / "b") == 0o700
    make_private_directory(tmp_path / "c", mode=0o750)
    assert mode_of(tmp_path / "c") == 0o750


def test_a_directory_that_is_there_becomes_private_with_what_is_in_it(tmp_path: Path):
    (tmp_path / "wide").mkdir(mode=0o777)
    (tmp_path / "wide" / "file").touch()
    make_private_directory(tmp_path / "wide")
    assert mode_of(tmp_path / "wide") == 0o700
    assert (tmp_path / "wide" / "file").exists()


def test_a_link_or_a_file_is_no_private_directory(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        with pytest.raises(StorageError, match=r"Not a directory|symbolic links"):
            make_private_directory(tmp_path / name)


@pytest.mark.root
def test_a_directory_of_somebody_else_is_refused(tmp_path: Path):
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 65534, 65534)
    with pytest.raises(StorageError, match="belongs to user 65534"):
        make_private_directory(tmp_path / "theirs")


@contextlib.contextmanager
def a_process_that_locks(path: Path) -> Iterator[subprocess.Popen[str]]:
    program = (
        "import sys; from pathlib import Path; from agent.host.files import lock_exclusive;"
        "lock = lock_exclusive(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_lock_names_its_holder_and_is_free_when_that_one_is_killed(tmp_path: Path):
    path = tmp_path / "lock"
    with a_process_that_locks(path) as other:
        with pytest.raises(LockHeldError, match=f"process {other.pid} already runs") as caught:
            lock_exclusive(path)
        assert (caught.value.pid, caught.value.code) == (other.pid, "already_running")
        other.send_signal(signal.SIGKILL)
        other.wait()
        with lock_exclusive(path):
            assert path.read_text() == f"{os.getpid()}\n"


def test_a_lock_that_was_let_go_can_be_taken_again(tmp_path: Path):
    path = tmp_path / "lock"
    lock = lock_exclusive(path)
    with pytest.raises(LockHeldError):
        lock_exclusive(path)
    lock.close()
    lock.close()
    lock_exclusive(path).close()


def test_a_program_that_we_start_does_not_keep_the_lock(tmp_path: Path):
    path = tmp_path / "lock"
    lock = lock_exclusive(path)
    with subprocess.Popen(["sleep", "60"]) as child:
        lock.close()
        lock_exclusive(path).close()
        child.kill()


def test_a_lock_in_a_directory_that_is_not_there_is_said(tmp_path: Path):
    with pytest.raises(FileAbsentError):
        lock_exclusive(tmp_path / "absent" / "lock")
