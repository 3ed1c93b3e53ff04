"Folders of results in corner cases: kills, locks, other people's files, full disks."

import errno
import io
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from ecgmm import EcgmmError
from ecgmm.runs import (
    Run,
    _part_name,
    _take,
    _this_process,
    finished,
    progress,
    read_marker,
    sweep,
    whole_file,
    write_whole,
)


def refused(words):
    "An `EcgmmError` with these words is expected."
    return pytest.raises(EcgmmError, match=re.escape(words))


def names(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def contents(folder):
    return {name: (folder / name).read_text() for name in names(folder)}


def work(folder, seed=0, stop=None, **options):
    "Two files, one after the other; `stop` ends the work before the second."
    files = ["a.txt", "parts/b.txt"]
    with Run.begin(folder, "experiment", dict(seed=seed), files, **options) as run:
        if run.done:
            return run.result
        if not (run.folder / "a.txt").exists():
            run.write("a.txt", f"a{seed}")
        if stop:
            raise stop
        run.write("parts/b.txt", f"b{seed}")
        return run.finish({"score": seed / 2})


@pytest.fixture(scope="module")
def ended():
    "The number of a process that has ended."
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def half_then_full(part):
    part.write_text("half")
    raise OSError(errno.ENOSPC, "No space left on device")


# files


def written_at_once(path, **options):
    write_whole(path, "new", **options)


def written_in_steps(path, **options):
    with whole_file(path, **options) as file:
        file.write("n")
        file.write("ew")


WRITERS = (written_at_once, written_in_steps)
NO_LINKS = OSError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("write", WRITERS)
def test_a_file_is_replaced_or_kept(tmp_path, write):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with refused(f"{path} is there already; give another name"):
        write(path, replace=False)
    assert contents(tmp_path) == {"a.txt": "old"}
    write(path)
    assert contents(tmp_path) == {"a.txt": "new"}
    for links in (True, False):  # some file systems have no links
        path.unlink()
        with patch.object(os, "link", side_effect=None if links else NO_LINKS, wraps=os.link):
            write(path, replace=False)
            assert contents(tmp_path) == {"a.txt": "new"}
            with refused("is there already; give another name"):
                write(path, replace=False)
    (tmp_path / "b.txt").symlink_to("nowhere")
    with refused("is there already; give another name"):
        write(tmp_path / "b.txt", replace=False)
    assert os.readlink(tmp_path / "b.txt") == "nowhere"


@pytest.mark.parametrize("links", [True, False])
def test_the_first_of_two_has_the_name(tmp_path, links):
    "Two at work on one name, in one process: the first to end has it."
    path = tmp_path / "a.txt"
    with patch.object(os, "link", side_effect=None if links else NO_LINKS, wraps=os.link):
        with refused("is there already; give another name"):
            with whole_file(path, replace=False) as slow:
                slow.write("slow")
                with whole_file(path, replace=False) as quick:
                    quick.write("quick")
    assert contents(tmp_path) == {"a.txt": "quick"}


@pytest.mark.parametrize("replace", [True, False])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("x"), OSError("not this file")])
def test_an_error_of_the_caller_leaves_no_file(tmp_path, error, replace):
    "It passes as it is: an error that arises elsewhere is not blamed on this file."
    with pytest.raises(type(error)) as caught:
        with whole_file(tmp_path / "a.txt", replace=replace) as file:
            file.write("half")
            raise error
    assert caught.value is error and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("replace", [True, False])
def test_a_full_disk_leaves_no_half_file(tmp_path, write, replace):
    full = OSError(errno.ENOSPC, "No space left on device")
    with (
        patch.object(os, "fsync", side_effect=full),
        refused("a.txt: no space left on the disk; free some and run the same command again"),
    ):
        write(tmp_path / "a.txt", replace=replace)
    with refused("a.txt: no space left on the disk"):
        write_whole(tmp_path / "a.txt", half_then_full, replace=replace)
    with refused("a.txt: No such file or directory"):
        write(tmp_path / "nowhere" / "a.txt", replace=replace)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_in_between(tmp_path):
    "A full disk may show with any piece, or only when the last one is flushed."
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    for text in ("a few words", "x" * 100_000):
        with (
            patch("ecgmm.runs._part_name", return_value=Path("/dev/full")),
            patch.object(Path, "unlink"),  # the device stays
            refused("a.txt: no space left on the disk"),
        ):
            with whole_file(tmp_path / "a.txt") as file:
                file.write(text)
    assert list(tmp_path.iterdir()) == []


def test_sweep_deletes_what_ended_processes_left(tmp_path, ended):
    "Those of this machine, and of the named files: nothing else."
    path, host = tmp_path / "a.b.txt", socket.gethostname()
    swept = [_part_name(path, ended), _part_name(path, ended)]
    kept = [
        _part_name(path),  # of a process that is alive
        _part_name(tmp_path / "b.txt", ended),  # of another file
        _part_name(tmp_path / "txt", ended),
        tmp_path / f".a.b.txt.elsewhere.{ended}.0.part",  # of another machine
        tmp_path / f".a.b.txt.{host}x.{ended}.0.part",
        tmp_path / "a.part",
        tmp_path / ".a.b.txt.download.part",
    ]
    for part in (*swept, *kept, path):
        part.touch()
    sweep(tmp_path, ["a.b.txt"])
    assert sorted(tmp_path.iterdir()) == sorted([*kept, path])
    os.link(path, swept[0])  # killed when the file had its name, before it could be reported
    sweep(tmp_path, ["a.b.txt"])
    assert sorted(tmp_path.iterdir()) == sorted(kept)


# locks


def test_locks_of_processes_that_have_ended(tmp_path, ended):
    lock = tmp_path / "run.lock"
    for changed in (
        dict(started=0),  # the number was given to another process
        dict(boot="before the power cut"),  # the machine was restarted
        dict(pid=ended, started=0),  # the process has ended
        dict(pid="1"),
        dict(started=None),
    ):
        lock.write_text(json.dumps(_this_process() | changed))
        _take(lock)
        assert json.loads(lock.read_text()) == _this_process()
    assert list(tmp_path.iterdir()) == [lock]


def test_locks_that_cannot_be_judged_from_here(tmp_path):
    lock = tmp_path / "run.lock"
    for changed in (dict(host="elsewhere"), dict(space="pid:[1]")):  # machine, container
        lock.write_text(json.dumps(_this_process() | changed))
        with refused(f"is at work here; if it is not, delete {lock}"):
            _take(lock)


def test_empty_locks(tmp_path):
    "One that is being written, or whose content a power cut kept from the disk."
    lock = tmp_path / "run.lock"
    for empty in (b"", b"\0" * 90):
        lock.write_bytes(empty)
        with refused("another process is at work here"):
            _take(lock)
        os.utime(lock, (0, 0))
        _take(lock)
        assert json.loads(lock.read_text()) == _this_process()


def test_other_programs_locks_stay(tmp_path):
    lock = tmp_path / "run.lock"
    for foreign in (b"a diary", b'{"lr": 1}', b"[1]", b"\xff\xfe"):
        lock.write_bytes(foreign)
        with refused("is not a lock of ours"):
            _take(lock)
        assert lock.read_bytes() == foreign
    lock.unlink()
    work(tmp_path)
    lock.write_text("a diary")
    work(tmp_path)  # a finished run is only read: no lock prevents that
    assert lock.read_text() == "a diary"


def test_two_processes(tmp_path):
    code = "from ecgmm.runs import Run\nRun.begin({!r}, 'experiment', dict(seed=0), ['a.txt'])"
    with Run.begin(tmp_path / "busy", "experiment", dict(seed=0), ["a.txt"]):
        second = subprocess.run(
            [sys.executable, "-c", code.format(str(tmp_path / "busy"))],
            capture_output=True,
            text=True,
        )
        expected = f"process {os.getpid()} on {socket.gethostname()} is at work here"
        assert expected in second.stderr.splitlines()[-1]
        watcher = Run.begin(  # the other processes of a group look on
            tmp_path / "busy", "experiment", dict(seed=0), ["a.txt"], main=False
        )
        watcher.write("a.txt", "no")
        watcher.drop("a.txt")
        watcher.finish()
        assert names(tmp_path / "busy") == ["run.json", "run.lock"]


def test_a_finished_run_is_reopened_by_one(tmp_path):
    work(tmp_path)
    with Run.reopen(tmp_path, "experiment") as run:
        run.write("a.txt", "decided later")
        with refused("is at work here"):
            Run.reopen(tmp_path, "experiment")
    assert contents(tmp_path)["a.txt"] == "decided later" and "run.lock" not in names(tmp_path)


# other people's files


def test_other_peoples_files_stay(tmp_path):
    mine = tmp_path / "mine"
    (mine / "parts").mkdir(parents=True)
    (mine / "parts" / "thesis.txt").write_text("years of work")
    (mine / ".DS_Store").touch()
    for options in ({}, {"overwrite": True}):
        with refused("is not an experiment of ours, it holds parts: give another folder"):
            work(mine, **options)
        with refused("parts is there already and was not made by this command"):
            work(mine, beside=True, **options)
    assert names(mine) == [".DS_Store", "parts/thesis.txt"]
    (mine / "parts").rename(mine / "chapters")
    work(mine, beside=True)
    work(mine, seed=1, overwrite=True)  # now it is ours, and the chapters stay
    kept = [".DS_Store", "chapters/thesis.txt"]
    assert names(mine) == sorted([*kept, "a.txt", "parts/b.txt", "run.json"])
    (mine / "parts" / "notes.txt").write_text("beside ours")
    with Run.begin(mine, "experiment", dict(seed=2), overwrite=True):
        pass  # our files go, the folder stays for the notes
    assert names(mine) == sorted([*kept, "parts/notes.txt", "run.json"])
    with refused("notes.txt is there already and was not made by this command"):
        Run.begin(mine, "experiment", dict(seed=2), ["parts/notes.txt"])
    with Run.begin(mine, "experiment", dict(seed=2)) as run:
        with refused("notes.txt is there already and was not made by this command"):
            run.path("parts/notes.txt")
        with pytest.raises(ValueError, match="inside the folder"):
            run.path("../notes.txt")


def test_another_kind_is_never_replaced(tmp_path):
    work(tmp_path)
    with refused("of another kind (experiment, not store)"):
        Run.begin(tmp_path, "store", {}, overwrite=True)
    with refused("a store is needed, this is an experiment"):
        finished(tmp_path, "store")
    with refused("a folder with a finished store is needed, this one is not there"):
        finished(tmp_path / "none", "store")


def test_what_is_no_marker_of_ours(tmp_path):
    work(tmp_path / "one")
    marker = read_marker(tmp_path / "one")
    file = tmp_path / "one" / "run.json"
    leading_out = ("../x", "/etc/passwd", "a\\..\\..\\x", "C:/x", "")
    for changed in (
        *({"files": [name]} for name in leading_out),
        *({"whole": [name]} for name in leading_out),
        *({"stale": [name]} for name in leading_out),
        {"files": [1]},
        {"format": "another program's"},
        {"result": 1},
    ):
        file.write_text(json.dumps(marker | changed))
        assert read_marker(tmp_path / "one") == {}
    for content in (b'{"lr": 1}', b"[]", b"\xff", b"[" * 100_000):
        file.write_bytes(content)
        assert read_marker(tmp_path / "one") == {}
        for beside in (True, False):
            with refused("give another folder"):
                work(tmp_path / "one", overwrite=True, beside=beside)
        assert file.read_bytes() == content
    (tmp_path / "odd").mkdir()
    os.mkfifo(tmp_path / "odd" / "run.json")
    assert read_marker(tmp_path / "odd") == {}  # to read a pipe would take for ever
    (tmp_path / "file").touch()
    with refused("a folder is needed, this is a file"):
        work(tmp_path / "file")


def test_nothing_is_deleted_beyond_a_link(tmp_path):
    work(tmp_path / "one")
    (tmp_path / "chapters").mkdir()
    (tmp_path / "chapters" / "thesis.txt").write_text("years of work")
    (tmp_path / "away").mkdir()
    marker = read_marker(tmp_path / "one") | {"files": ["link/thesis.txt"], "identity": {"seed": 9}}
    (tmp_path / "away" / "run.json").write_text(json.dumps(marker))
    (tmp_path / "away" / "link").symlink_to(tmp_path / "chapters")
    work(tmp_path / "away", overwrite=True)
    assert (tmp_path / "chapters" / "thesis.txt").exists()


# errors and kills


def test_nothing_made_nothing_left(tmp_path):
    for files in ([], ["parts/b.txt"]):
        with pytest.raises(ZeroDivisionError):
            with Run.begin(tmp_path / "nothing", "experiment", {}, files) as run:
                if files:
                    run.path(files[0])
                raise ZeroDivisionError
        assert not (tmp_path / "nothing").exists()
    with pytest.raises(ZeroDivisionError):  # another run within it has begun: the folder stays ours
        with Run.begin(tmp_path / "outer", "study", {}, ["table.csv"]):
            work(tmp_path / "outer" / "inner")
            raise ZeroDivisionError
    with Run.begin(tmp_path / "outer", "study", {}, ["table.csv"]) as run:
        run.write("table.csv", "x")
        run.finish()


def test_read_only_disk(tmp_path):
    with (
        patch.object(Path, "mkdir", side_effect=OSError(errno.EROFS, "Read-only file system")),
        refused("Read-only file system"),
    ):
        work(tmp_path / "readonly")


def killed(call, below, stop):
    "Run `call` in a child that kills itself before its `stop`-th change; True if it came that far."
    pid = os.fork()
    if pid == 0:
        changes = [0]

        def hook(event, args):
            opened = event == "open" and isinstance(args[2], int)
            writes = opened and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            moves = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
            if (writes or moves) and str(args[0]).startswith(str(below)):
                changes[0] += 1
                if changes[0] == stop:
                    os.kill(os.getpid(), 9)

        sys.addaudithook(hook)
        try:
            call()
        finally:
            os._exit(0)
    return os.waitpid(pid, 0)[1] == 9


@pytest.mark.parametrize(
    "before, call, least",
    [
        (None, work, 8),
        (work, lambda folder: work(folder, seed=1, overwrite=True), 8),
        (work, work, 0),  # to find it done changes nothing
    ],
    ids=["begun", "replaced", "done"],
)
def test_killed_at_any_moment(tmp_path, before, call, least):
    "Called again, it ends as an undisturbed call does, with nothing left behind."

    def prepared(name):
        if before:
            before(tmp_path / name)
        return tmp_path / name

    whole = prepared("whole")
    call(whole)
    stop = 1
    while killed(lambda: call(folder), folder := prepared(f"killed {stop}"), stop):
        call(folder)
        assert contents(folder) == contents(whole)
        stop += 1
    assert stop - 1 >= least and (least or stop == 1)


# the bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(file, steps, disable=""):
    "What `steps` writes on a bar, outside a notebook."
    with (
        patch.object(sys, "stderr", file),
        patch.dict(sys.modules),
        patch.dict(os.environ, TQDM_DISABLE=disable),
    ):
        sys.modules.pop("ipykernel", None)
        steps()
    return file.getvalue()


def many(show=True):
    with progress(1000, "recordings", "prepare", show) as bar:
        for _ in range(1000):
            bar.update()


def nested():
    with progress(2, "runs", "study") as outer:
        for _ in range(2):
            with progress(3, "steps", "train") as inner:
                inner.update(3)
            outer.update()


def test_bars_in_a_log_and_on_a_terminal():
    log = shown(io.StringIO(), many).strip()
    assert "\r" not in log and len(log.splitlines()) == 2
    assert log.splitlines()[-1].startswith("prepare: 1000 of 1000 recordings") and "left" in log
    terminal = shown(Terminal(), many)
    assert terminal.count("\r") > 1 and "1000/1000" in terminal


def test_bars_within_bars_in_a_log():
    log = shown(io.StringIO(), nested)
    assert "\x1b" not in log and log.count("train: 3 of 3 steps") == 2


@pytest.mark.parametrize("file", [io.StringIO, Terminal])
def test_no_bar(file):
    assert shown(file(), lambda: many(show=False)) == ""
    assert shown(file(), many, disable="1") == ""
