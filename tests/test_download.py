"""Downloads in corner cases: odd addresses, redirections, full disks, other people's files, kills.

Nothing here touches the network.
"""

import errno
import hashlib
import os
import re
import shutil
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import patch
from urllib.request import Request

import pytest

import ecgmm.download
from ecgmm import EcgmmError
from ecgmm.download import (
    _IN_A_ROW,
    Downloaded,
    _download_records,
    _fetch_record,
    _files,
    _put,
    _Redirects,
    download,
    fetch,
    list_records,
    read_checksums,
)
from ecgmm.runs import Run

MAT = "training/cpsc_2018/g1/A0001.mat"
LOAD = 36_024  # bytes of a file of samples
NEEDS_FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")


def refused(words):
    "An `EcgmmError` with these words is expected."
    return pytest.raises(EcgmmError, match=re.escape(words))


class Handler(BaseHTTPRequestHandler):
    "Serves a folder, with faults: see `serve`."

    def do_GET(self):
        path = self.path.lstrip("/")
        fault, file = self.next_fault(path), self.server.root / path
        body = file.read_bytes() if file.is_file() else b""
        start = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        status = 404 if not file.is_file() else 206 if start else 200
        if start and start >= len(body):
            status = 416
        if str(fault).startswith("to "):
            status = 302
        if "flip" in str(fault):
            body = body[:-1] + bytes([body[-1] ^ 1])
        body = body[start:] if status < 300 else b""
        sent = body[:fault] if isinstance(fault, int) else body
        self.server.log.append((path, status, start, len(sent)))
        self.send_response(status)
        if status == 302:
            self.send_header("Location", fault.removeprefix("to "))
        if status == 206:
            end = start + len(body)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
        if fault != "endless":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(sent)
        try:
            while fault == "endless":
                self.wfile.write(b"\n" * (1 << 20))
        except OSError:
            pass  # the caller has hung up

    def next_fault(self, path):
        queue = self.server.faults.get(path, [])
        return queue.pop(0) if queue else ""

    def log_message(self, *args):
        pass


class Server:
    """A server on a free port, with faults: path -> one fault per request, in turn.

    `k` closes the connection after k bytes, "flip" changes one byte, "to ADDRESS" redirects,
    "endless" never ends.
    """

    def __init__(self, root):
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.root, self.http.faults, self.http.log = root, {}, []
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/"
        self.root, self.faults, self.log = root, self.http.faults, self.http.log
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def asked(self):
        "The paths of the requests so far; the log begins anew."
        paths = [path for path, *_ in self.log]
        self.log.clear()
        return paths


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    "Seven recordings of two sources: the bytes need not be readable."
    root = tmp_path_factory.mktemp("database")
    for folder, names in {
        "training/cpsc_2018/g1": ["A0001", "A0002"],
        "training/cpsc_2018/g2": ["A0003", "A0004"],
        "training/ptb/g1": ["S0001", "S0002", "S0003"],
    }.items():
        (root / folder).mkdir(parents=True)
        for name in names:
            samples = hashlib.shake_256(name.encode()).digest(LOAD)
            (root / folder / f"{name}.mat").write_bytes(samples)
            (root / folder / f"{name}.hea").write_text(f"{name} 12 500 1500\n")
        (root / folder / "RECORDS").write_text("".join(f"{name}\n" for name in names))
    folders = sorted(p.parent.relative_to(root).as_posix() for p in root.rglob("g*/RECORDS"))
    (root / "RECORDS").write_text("".join(f"{folder}/\n" for folder in folders))
    sums = sums_of(root)
    (root / "SHA256SUMS.txt").write_text("".join(f"{s} {f}\n" for f, s in sums.items()))
    return root


def sums_of(root):
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.name != "SHA256SUMS.txt")
    return {
        p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    }


@pytest.fixture(scope="module")
def sums(database):
    return sums_of(database)


@pytest.fixture
def server(database, monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")
    servers = []

    def serve(root=database):
        servers.append(Server(root))
        return servers[-1]

    main = serve()
    main.another = serve
    yield main
    for s in servers:
        s.http.shutdown()
        s.http.server_close()


@pytest.fixture
def quick(server):
    return dict(sources=["cpsc_2018", "ptb"], base_url=server.url, progress=False, wait=0.01)


# one file


@pytest.mark.parametrize(
    "content, requests",
    [
        ("whole", []),  # killed between the last byte and the name
        (b"x" * 30000, [(206, 30000, 6024), (200, 0, LOAD)]),  # another file's part
        (b"x" * 40000, [(416, 40000, 0), (200, 0, LOAD)]),  # longer than the file
        (b"", [(200, 0, LOAD)]),
    ],
)
def test_parts(tmp_path, server, database, sums, content, requests):
    "What lies in the part before the first request."
    data, part = (database / MAT).read_bytes(), tmp_path / "A0001.mat.part"
    part.write_bytes(data if content == "whole" else content)
    fetch(server.url + MAT, tmp_path / "A0001.mat", sums[MAT], wait=0.01, part=part)
    assert (tmp_path / "A0001.mat").read_bytes() == data
    assert os.listdir(tmp_path) == ["A0001.mat"]
    assert [entry[1:] for entry in server.log] == requests


def test_no_part_is_kept_unasked(tmp_path, server, sums):
    server.faults[MAT] = [20000, 0]
    with refused("1 tries brought nothing new"):
        fetch(server.url + MAT, tmp_path / "half.mat", sums[MAT], tries=1, wait=0.01)
    assert os.listdir(tmp_path) == []


def test_changed_files_stay(tmp_path, server, database, sums):
    mine, part = tmp_path / "mine.mat", tmp_path / "mine.part"
    data = (database / MAT).read_bytes()
    for changed in (b"years of work", data[:-1] + b"?", data + b"\n", data[:100], b""):
        mine.write_bytes(changed)
        for place in (None, part):
            with refused("mine.mat is there with other content; move it away"):
                fetch(server.url + MAT, mine, sums[MAT], wait=0.01, part=place)
        assert (mine.read_bytes(), server.log, part.exists()) == (changed, [], False)


@NEEDS_FULL
def test_full_disk(tmp_path, server, sums):
    part = tmp_path / "full.mat.part"
    part.symlink_to("/dev/full")
    with refused("no space left on the disk"):
        fetch(server.url + MAT, tmp_path / "full.mat", sums[MAT], part=part)
    assert server.asked() == [MAT]


@pytest.mark.parametrize(
    "address",
    [
        "http://[::1/x",
        "http://127.0.0.1:99999/x",
        "http://a..b/x",
        "http://127.0.0.1:9/\xe9",
        "nowhere",
    ],
)
def test_odd_addresses(tmp_path, server, sums, address):
    "Given, or in a server's answer: each is one line, none is a mistake of ours."
    with pytest.raises(EcgmmError):
        fetch(address, tmp_path / "x", tries=1)
    server.faults[MAT] = [f"to {address}"]
    with pytest.raises(EcgmmError):
        fetch(server.url + MAT, tmp_path / "x", sums[MAT], tries=1)


def test_nobody_listens(tmp_path):
    with refused("2 tries brought nothing new"):
        fetch("http://127.0.0.1:9/x", tmp_path / "x", tries=2, wait=0.01)


# who is believed


def test_a_recording_may_come_from_elsewhere_a_listing_may_not(tmp_path, server, sums):
    other = server.another()
    there = other.url.replace("127.0.0.1", "localhost")
    server.faults.update({path: [f"to {there}{path}"] for path in (MAT, "SHA256SUMS.txt")})
    assert fetch(server.url + MAT, tmp_path / "elsewhere.mat", sums[MAT])  # its checksum is known
    assert other.asked() == [MAT]
    for name, sha256 in (("SHA256SUMS.txt", None), ("RECORDS", sums["RECORDS"])):
        server.faults[name] = [f"to {there}{name}"]
        with refused(f"{server.url}{name}: the server sends us on to {there}{name}: a listing"):
            fetch(server.url + name, tmp_path / "listing", sha256, listing=True)
    assert other.asked() == []
    server.faults["RECORDS"] = [f"to {server.url}SHA256SUMS.txt"]  # elsewhere on the same server
    assert fetch(server.url + "RECORDS", tmp_path / "moved")
    assert (tmp_path / "moved").read_bytes() == (server.root / "SHA256SUMS.txt").read_bytes()


def redirected(listing, old, new):
    with open(os.devnull) as answer:
        return _Redirects(listing).redirect_request(Request(old), answer, 302, "Found", {}, new)


@pytest.mark.parametrize("listing", [True, False])
def test_what_began_encrypted_stays_so(listing):
    same = redirected(listing, "https://a.org/x", "https://A.org:443/y")
    assert same.full_url == "https://A.org:443/y"
    with refused("https://a.org/x: the server sends us on to http://a.org/y"):
        redirected(listing, "https://a.org/x", "http://a.org/y")
    for new in ("ftp://a.org/x", "file:///etc/passwd"):
        with refused(new):
            redirected(listing, "http://a.org/x", new)
    # into encryption, and to a mirror
    assert listing or redirected(listing, "http://a.org/x", "https://b.org/x") is not None


def test_listings_have_an_end_and_are_not_gone_on_with(tmp_path, server):
    server.faults["SHA256SUMS.txt"] = ["endless"]
    with (
        patch("ecgmm.download._MOST_LISTING", 3 << 20),
        refused("more than 3 MiB came, no such file is so large"),
    ):
        fetch(server.url + "SHA256SUMS.txt", tmp_path / "endless")
    assert server.asked() == ["SHA256SUMS.txt"] and os.listdir(tmp_path) == []
    (tmp_path / "kept.part").write_text("an older version")
    server.faults["RECORDS"] = [20]
    assert fetch(server.url + "RECORDS", tmp_path / "kept", wait=0.01, part=tmp_path / "kept.part")
    size = (server.root / "RECORDS").stat().st_size
    assert server.log == [("RECORDS", 200, 0, 20), ("RECORDS", 200, 0, size)]
    assert (tmp_path / "kept").read_bytes() == (server.root / "RECORDS").read_bytes()
    assert (tmp_path / "kept.part").read_text() == "an older version"


# listings

OUTSIDE = ["../../.bashrc", "/etc/passwd", "training/../../x", "training\\x", "C:/x"]
OUTSIDE += ["training//x", "training/x/.", "a\tb"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_checksums_of_paths_that_lead_outside(tmp_path, name):
    (tmp_path / "sums").write_text(f"{'0' * 64}  {name}\n")
    with refused("line 1: a path inside the database"):
        read_checksums(tmp_path / "sums")


def test_other_checksums(tmp_path):
    file = tmp_path / "sums"
    for line in ("123  training/x", f"{'g' * 64}  x", "<html>Service unavailable</html>"):
        file.write_text(line)
        with refused("line 1: a checksum and a path"):
            read_checksums(file)
    file.write_text(f"{'A' * 64} *./training/x y.hea\n\n")  # other tools' spelling
    assert read_checksums(file) == {"training/x y.hea": "a" * 64}
    file.write_bytes(b"\xff")
    with refused("text in UTF-8 is needed"):
        read_checksums(file)


def test_changed_and_hostile_lists(tmp_path, server, database):
    copy = tmp_path / "copy"
    shutil.copytree(database, copy)
    (copy / "training/ptb/g1/RECORDS").write_text("S0001\n../../../S0002\n")
    changed = server.another(copy)
    with refused("checksum"):
        list_records(tmp_path / "b", changed.url, sources=["ptb"], wait=0.01)
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "SHA256SUMS.txt").write_text("")  # without a checksum, too, paths are refused
    (evil / "RECORDS").write_text("training/ptb/../../../g1/\n")
    with refused("inside the database"):
        list_records(tmp_path / "c", server.another(evil).url, sources=["ptb"])


# many files


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(base_url="file:///etc/"), "http:// or https://"),
        (dict(base_url=""), "http:// or https://"),
        (dict(base_url="http://[::1"), "Invalid IPv6"),
        (dict(base_url="http://"), "a server's name"),
        (dict(base_url="http://127.0.0.1:99999"), "Port out of range"),
        (dict(base_url="http://a b/"), "without spaces"),
        (dict(base_url="http://a/\xe9/"), "of ASCII letters"),
        (dict(n_records=0), "n_records must be at least 1, got 0"),
        (dict(connections=99), "connections must be 1 to 16, got 99"),
    ],
)
def test_options(tmp_path, options, words):
    with refused(words):
        download(tmp_path / "none", **options)
    assert not (tmp_path / "none").exists()


def test_a_file_without_a_checksum(tmp_path, server, sums):
    "It is not taken on trust."
    silent = {path: s for path, s in sums.items() if path != "training/ptb/g1/S0003.hea"}
    with (
        Run.begin(tmp_path, "download", dict(base_url=server.url)) as run,
        refused("S0003.hea has no checksum"),
    ):
        _fetch_record(run, server.url, silent, 1, "training/ptb/g1/S0003")
    assert server.asked() == []


@NEEDS_FULL
def test_a_full_disk_stops_everything(tmp_path, server, quick):
    server.faults["training/ptb/g1/S0001.mat"] = [20000, 0, 0, 0, 0]
    assert list(download(tmp_path, **quick).failed) == ["training/ptb/g1/S0001"]
    part = tmp_path / "training/ptb/g1/.S0001.mat.download.part"
    assert part.stat().st_size == 20000
    part.unlink()
    part.symlink_to("/dev/full")
    with refused("no space left on the disk"):
        download(tmp_path, **quick)


def test_read_only_disk(tmp_path, quick):
    with (
        patch.object(Path, "mkdir", side_effect=OSError(errno.EROFS, "Read-only file system")),
        refused("Read-only file system"),
    ):
        download(tmp_path / "readonly", **quick)


def test_other_peoples_files(tmp_path, server, database, quick):
    "A file, a link, a half file: each is named and stays; moved away, they are fetched."
    ptb, g1 = quick | dict(sources=["ptb"]), tmp_path / "training/ptb/g1"
    shutil.copytree(database / "training/ptb", tmp_path / "training/ptb")
    (tmp_path / "thesis.txt").write_text("years of work")
    (g1 / "S0001.mat").write_text("an edited recording")
    (g1 / "S0002.hea").unlink()
    (g1 / "S0002.hea").symlink_to("nowhere")
    (g1 / "S0003.mat").unlink()
    (g1 / ".S0003.mat.download.part").write_text("somebody's half file")
    ours = [tmp_path / name for name in ("run.json", "failed.txt", "SHA256SUMS.txt", "RECORDS")]

    def contents():
        paths = (p for p in tmp_path.rglob("*") if p not in ours and not p.is_dir())
        return {p: p.readlink() if p.is_symlink() else p.read_bytes() for p in paths}

    before = contents()
    done = download(tmp_path, **ptb)
    assert (done.whole, contents()) == (0, before)
    half = ".S0003.mat.download.part"
    for name, why in (
        ("S0001", "S0001.mat is there with other content; move it away"),
        ("S0002", "S0002.hea is there with other content; move it away"),
        ("S0003", f"{half} is there already and was not made by this command; move it away"),
    ):
        assert why in done.failed[f"training/ptb/g1/{name}"]
    for name in ("S0001.mat", "S0002.hea", half):
        (g1 / name).unlink()
    server.log.clear()
    assert download(tmp_path, **ptb) == Downloaded(3, 3, 3, {}, 0)
    fetched = sorted(Path(path).name for path in server.asked())
    assert fetched == ["S0001.mat", "S0002.hea", "S0003.mat"]  # only what was missing
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_persons_list_of_failures(tmp_path, quick):
    (tmp_path / "failed.txt").write_text("mine")
    with refused("failed.txt is there already and was not made by this command"):
        download(tmp_path, **quick)
    assert os.listdir(tmp_path) == ["failed.txt"]


def test_corrections_are_never_undone(tmp_path, server, quick, sums):
    "All of it was fetched by us, then changed: every kind of file, in every way."
    download(tmp_path, **quick)
    kinds = [f for f in sums if f.endswith((".hea", ".mat")) or f.endswith("ptb/g1/RECORDS")]
    for f in kinds:
        original = (tmp_path / f).read_bytes()
        for changed in (original + b"#Dx: corrected\n", original[:-10], b""):
            (tmp_path / f).write_bytes(changed)
            server.log.clear()
            try:
                failed = download(tmp_path, **quick).failed
            except EcgmmError as error:  # a listing
                failed = {f[:-4]: str(error)}
            assert ((tmp_path / f).read_bytes(), server.log) == (changed, [])
            assert list(failed) == [f[:-4]]
            assert f"{f} is there with other content; move it away" in failed[f[:-4]]
        (tmp_path / f).unlink()  # moved away, it is fetched
        assert download(tmp_path, **quick).failed == {}
        assert (tmp_path / f).read_bytes() == original


def test_many_corrections_are_no_failures_of_the_server(tmp_path, server, sums):
    many, whole = [f"training/y{k}" for k in range(_IN_A_ROW + 9)], "training/ptb/g1/S0001"
    known = sums | {file: "0" * 64 for m in many for file in _files(m)}
    with Run.begin(tmp_path, "download", {}, beside=True) as run:
        for m in many:
            run.write(_files(m)[0], "mine")
        ask = partial(_fetch_record, run, server.url, known, 1)
        done = _download_records(run, [*many, whole], ask, connections=1, progress=False)
    assert (len(done.failed), done.whole, done.untried) == (len(many), 1, 0)


def test_another_server_and_a_second_call(tmp_path, server, quick):
    download(tmp_path, **quick)
    other = server.another()
    with refused(f"was filled from {server.url}, not from {other.url}: give another folder"):
        download(tmp_path, **quick | dict(base_url=other.url))
    assert download(tmp_path, **quick | dict(base_url=server.url.rstrip("/"))).fetched == 0
    with (
        Run.begin(tmp_path, "download", dict(base_url=server.url), beside=True),
        refused("is at work here"),
    ):
        download(tmp_path, **quick)


def killed(where, options):
    "A download that ends itself with 20,000 bytes of the second recording's samples on the disk."
    pid = os.fork()
    if pid == 0:

        def put(f, block):
            _put(f, block)
            if Path(f.name).name == ".S0002.mat.download.part":
                os.kill(os.getpid(), 9)
            return len(block)

        ecgmm.download._put = put
        try:
            download(where, **options | dict(connections=1))
        finally:
            os._exit(0)
    return os.waitpid(pid, 0)[1] == 9


def test_killed_in_the_middle_of_a_file(tmp_path, server, quick):
    "Called again, it goes on with the half file, and ends as an undisturbed call does."
    ptb, g1 = quick | dict(sources=["ptb"]), tmp_path / "training/ptb/g1"
    server.faults["training/ptb/g1/S0002.mat"] = [20000]
    assert killed(tmp_path, ptb)
    assert (g1 / ".S0002.mat.download.part").stat().st_size == 20000
    assert (g1 / "S0001.hea").exists() and not (g1 / "S0002.mat").exists()
    server.faults.clear()
    server.log.clear()
    assert download(tmp_path, **ptb) == Downloaded(3, 3, 4, {}, 0)
    assert ("training/ptb/g1/S0002.mat", 206, 20000, 16024) in server.log
    assert sorted(os.listdir(tmp_path)) == ["RECORDS", "SHA256SUMS.txt", "run.json", "training"]
    files = [f"S000{k}.{end}" for k in (1, 2, 3) for end in ("hea", "mat")]
    assert sorted(os.listdir(g1)) == ["RECORDS", *files]
