"""Programs that use fsspec, on sessions without a mount."""

import concurrent.futures
import datetime
import importlib
import multiprocessing
import os
import pickle
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from harness import Export, Server, Stage
from harness.needs import need_that
from harness.waiting import records, told, wait_for_record

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed (pip: fuse-gated[network])")
from fuse_gated.fsspec import FuseGatedFileSystem  # noqa: E402  # where it can be imported

RULES: Final = [
    {"path": "/no-read/**", "deny": ["read"]},
    {"path": "/no-write/**", "deny": ["write", "delete"]},
    {"path": "/secret", "hide": True},
    {"path": "/**", "allow": ["read", "write", "execute", "delete"]},
]
TOP: Final = "acme/work"


@pytest.fixture(scope="module")
def server(stage: Stage) -> Server:
    fsspec.register_implementation("fuse-gated", FuseGatedFileSystem, clobber=True)
    return stage.server(stage.tenant(audit="opens", rules=RULES), settings={"drivers": ["network"]})


@pytest.fixture(scope="module")
def client(stage: Stage, server: Server) -> Export:
    client = stage.export(server)
    client.wait_for_event("mounted")
    for name in ("no-read", "no-write"):
        (client.directory / name).mkdir()
        (client.directory / name / "f").write_text("content")
    (client.directory / "secret").write_text("the secret")
    return client


@pytest.fixture
def fs(server: Server, client: Export) -> Any:
    return FuseGatedFileSystem(runtime=str(server.runtime))


@pytest.fixture
def here(request: pytest.FixtureRequest, client: Export) -> Iterator[tuple[str, Path]]:
    """A directory of the test's own: its path for fsspec, and where it really is."""
    name = request.node.name.replace("[", "-").replace("]", "")
    (client.directory / name).mkdir()
    return f"{TOP}/{name}", client.directory / name


Here = tuple[str, Path]


def test_it_is_an_entry_point() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["entry-points"]["fsspec.specs"] == {"fuse-gated": "fuse_gated.fsspec:FuseGatedFileSystem"}


def test_by_its_url(server: Server, here: Here) -> None:
    path, behind = here
    with fsspec.open(f"fuse-gated://{path}/f", "wb", runtime=str(server.runtime)) as file:
        file.write(b"by url")
    assert (behind / "f").read_bytes() == b"by url"
    with fsspec.open(f"fuse-gated://{path}/f", "rt", runtime=str(server.runtime)) as file:
        assert file.read() == "by url"
    files = fsspec.open_files(f"fuse-gated://{path}/*", runtime=str(server.runtime))
    assert [file.path for file in files] == [f"{path}/f"]


def test_what_is_there(fs: Any, here: Here) -> None:
    path, behind = here
    (behind / "d" / "e").mkdir(parents=True)
    (behind / "f").write_bytes(b"12345")
    (behind / "d" / "g.csv").write_text("x")
    (behind / "to-f").symlink_to("f")
    (behind / "to-d").symlink_to("d")
    (behind / "nowhere").symlink_to("nothing")
    listed = {info["name"].rpartition("/")[2]: info for info in fs.ls(path)}
    kinds = {name: info["type"] for name, info in listed.items()}
    assert kinds == {"d": "directory", "f": "file", "to-f": "file", "to-d": "link", "nowhere": "link"}
    assert (listed["f"]["size"], listed["to-f"]["size"], listed["to-f"]["destination"]) == (5, 5, "f")
    assert fs.ls(f"{path}/f", detail=False) == [f"{path}/f"]
    assert sorted(fs.find(path)) == [f"{path}/{name}" for name in ("d/g.csv", "f", "nowhere", "to-d", "to-f")]
    assert fs.glob(f"{path}/**/*.csv") == [f"{path}/d/g.csv"]
    walked = [(top, sorted(directories), sorted(files)) for top, directories, files in fs.walk(path)]
    assert walked[0] == (path, ["d"], ["f", "nowhere", "to-d", "to-f"])
    assert fs.info(f"{path}/to-d")["type"] == "directory"
    assert sorted(fs.ls(f"{path}/to-d", detail=False)) == [f"{path}/to-d/e", f"{path}/to-d/g.csv"]
    assert (fs.exists(f"{path}/f"), fs.exists(f"{path}/nothing"), fs.isfile(f"{path}/to-f")) == (True, False, True)
    assert fs.du(path) >= 5
    status = (behind / "f").stat()
    info = fs.info(f"{path}/f")
    assert (info["mtime_ns"], info["ino"], info["mode"]) == (status.st_mtime_ns, status.st_ino, status.st_mode & ~0o111)
    assert fs.modified(f"{path}/f") == datetime.datetime.fromtimestamp(status.st_mtime, tz=datetime.UTC)
    assert fs.created(f"{path}/f").tzinfo is not None


def test_servers_have_tenants_which_have_exports(fs: Any) -> None:
    assert fs.ls("", detail=False) == ["acme"]
    assert fs.ls("fuse-gated://acme/", detail=False) == ["acme/work"]
    assert (fs.isdir("acme"), fs.isdir(TOP), fs.exists("other"), fs.exists("other/x")) == (True, True, False, False)
    with pytest.raises(FileNotFoundError):
        fs.ls("other")
    with pytest.raises(PermissionError):
        fs.mkdir("other")


@pytest.mark.parametrize("size", [0, 1, 131072, 3 * 2**20 + 5])
def test_contents_pass_both_ways(fs: Any, here: Here, size: int) -> None:
    path, behind = here
    data = os.urandom(size)
    fs.pipe(f"{path}/f", data)
    assert (behind / "f").read_bytes() == data
    assert fs.cat(f"{path}/f") == data
    with fs.open(f"{path}/f") as file:
        assert file.read() == data
    fs.get(f"{path}/f", str(behind / "got"))
    assert (behind / "got").read_bytes() == data
    fs.put(str(behind / "got"), f"{path}/put")
    assert (behind / "put").read_bytes() == data


def test_ranges(fs: Any, here: Here) -> None:
    path, behind = here
    (behind / "f").write_bytes(b"0123456789")
    assert fs.cat_file(f"{path}/f", 2, 5) == b"234"
    assert fs.cat_file(f"{path}/f", -3) == b"789"
    assert fs.cat_file(f"{path}/f", 0, -8) == b"01"
    assert fs.cat_file(f"{path}/f", 8, 99) == b"89"
    assert fs.cat_ranges([f"{path}/f"] * 2, [0, 5], [1, 6]) == [b"0", b"5"]
    assert (fs.head(f"{path}/f", 2), fs.tail(f"{path}/f", 2)) == (b"01", b"89")
    with fs.open(f"{path}/f", block_size=4, cache_type="readahead") as file:
        file.seek(-4, os.SEEK_END)
        assert file.read(2) == b"67"
        file.seek(0)
        assert list(file) == [b"0123456789"]


def test_modes(fs: Any, here: Here) -> None:
    path, behind = here
    name = f"{path}/f"
    with fs.open(name, "xb") as file:
        file.write(b"one\n")
    with pytest.raises(FileExistsError):
        fs.open(name, "xb")
    with fs.open(name, "ab") as file:
        file.write(b"two\n")
        assert file.tell() == 8
    with fs.open(name, "r+b") as file:
        assert file.readline() == b"one\n"
        file.seek(0)
        file.write(b"ONE")
        file.truncate(6)
    assert (behind / "f").read_bytes() == b"ONE\ntw"
    with fs.open(name, "w+b") as file:
        file.write(b"new")
        file.seek(0)
        assert file.read() == b"new"
    with fs.open(name, "w") as file:
        file.write("text\n")
    with fs.open(name, "r") as file:
        assert file.readlines() == ["text\n"]
    with fs.open(f"{path}/f.gz", "wb", compression="gzip") as file:
        file.write(b"packed")
    with fs.open(f"{path}/f.gz", "rb", compression="infer") as file:
        assert file.read() == b"packed"
    with pytest.raises(ValueError, match="mode"):
        fs.open(name, "zb")
    with pytest.raises(ValueError, match="create"):
        fs.open(name, "wb", compression="create-none")


def test_names(fs: Any, here: Here) -> None:
    path, behind = here
    fs.makedirs(f"{path}/a/b/c")
    fs.makedirs(f"{path}/a/b/c", exist_ok=True)
    with pytest.raises(FileExistsError):
        fs.makedirs(f"{path}/a/b/c")
    fs.mkdir(f"{path}/p/q")
    with pytest.raises(FileNotFoundError):
        fs.mkdir(f"{path}/r/s", create_parents=False)
    fs.touch(f"{path}/a/f")
    fs.pipe(f"{path}/a/f", b"content")
    fs.touch(f"{path}/a/f", truncate=False)
    assert (behind / "a" / "f").read_bytes() == b"content"
    fs.touch(f"{path}/new", truncate=False)
    fs.mv(f"{path}/a/f", f"{path}/g")
    fs.mv(f"{path}/a", f"{path}/z", recursive=True)
    assert sorted(os.listdir(behind)) == ["g", "new", "p", "z"]
    fs.cp(f"{path}/g", f"{path}/h")
    fs.copy(f"{path}/z", f"{path}/y", recursive=True)
    assert (behind / "h").read_bytes() == b"content"
    assert (behind / "y" / "b" / "c").is_dir()
    with pytest.raises(OSError, match="not empty"):
        fs.rmdir(f"{path}/z")
    with pytest.raises(IsADirectoryError):
        fs.rm(f"{path}/z")
    (behind / "z" / "l").symlink_to("../g")
    fs.rm(f"{path}/z", recursive=True)
    fs.rm_file(f"{path}/h")
    fs.rm([f"{path}/g", f"{path}/new"])
    assert sorted(os.listdir(behind)) == ["p", "y"]
    name = os.fsdecode(b"\xff.txt")
    fs.pipe(f"{path}/{name}", b"x")
    assert os.listdir(os.fsencode(behind)).count(b"\xff.txt") == 1
    assert f"{path}/{name}" in fs.find(path)


def test_what_the_rules_refuse(fs: Any, here: Here) -> None:
    path, behind = here
    (behind / "f").write_text("content")
    with pytest.raises(PermissionError) as raised:
        fs.cat(f"{TOP}/no-read/f")
    assert raised.value.filename == f"{TOP}/no-read/f"
    with pytest.raises(PermissionError):
        fs.pipe(f"{TOP}/no-write/f", b"x")
    with pytest.raises(FileNotFoundError):
        fs.cat(f"{TOP}/secret")
    assert f"{TOP}/secret" not in fs.ls(TOP, detail=False)
    # What would gain a right by its new name is copied, and each part is judged.
    with pytest.raises(PermissionError):
        fs.mv(f"{TOP}/no-read/f", f"{path}/stolen")
    assert not (behind / "stolen").exists()
    with pytest.raises(NotADirectoryError):
        fs.cat(f"{path}/f/beneath")
    with pytest.raises(IsADirectoryError):
        fs.cat(path)


def test_a_transaction(fs: Any, here: Here) -> None:
    path, behind = here
    with fs.transaction, fs.open(f"{path}/f", "wb") as file:
        file.write(b"content")
        assert not (behind / "f").exists()
    assert os.listdir(behind) == ["f"]
    with pytest.raises(RuntimeError), fs.transaction:  # noqa: PT012
        with fs.open(f"{path}/g", "wb") as file:
            file.write(b"content")
        raise RuntimeError
    assert os.listdir(behind) == ["f"]
    with pytest.raises(ValueError, match="written whole"), fs.transaction:
        fs.open(f"{path}/f", "r+b")


def test_keys_change_with_the_file(fs: Any, here: Here) -> None:
    path, behind = here
    (behind / "f").write_text("one")
    key, checksum = fs.ukey(f"{path}/f"), fs.checksum(f"{path}/f")
    assert (key, checksum) == (fs.ukey(f"{path}/f"), fs.checksum(f"{path}/f"))
    (behind / "f").write_text("two!")
    assert fs.ukey(f"{path}/f") != key
    assert fs.checksum(f"{path}/f") != checksum


def test_several_threads(fs: Any, here: Here) -> None:
    path, _ = here
    data = {f"{path}/{number}": os.urandom(200_000) for number in range(12)}
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        list(pool.map(fs.pipe_file, data, data.values()))
        assert list(pool.map(fs.cat_file, data)) == list(data.values())


def _reads(fs: Any, file: Any, path: str) -> tuple[bytes, bytes]:
    file.seek(0)
    return fs.cat_file(path), file.read()


def test_after_a_fork(fs: Any, here: Here) -> None:
    """A child that inherited filesystem and file has connections of its own, and leaves the parent's alone."""
    path, behind = here
    (behind / "f").write_bytes(b"content")
    with fs.open(f"{path}/f", cache_type="none") as file:
        assert file.read(3) == b"con"
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.starmap(_reads, [(fs, file, f"{path}/f")] * 4) == [(b"content", b"content")] * 4
        assert file.read() == b"tent"
        child = os.fork()
        if child == 0:
            os._exit(0 if _inherited(fs, file, f"{path}/f") else 1)
        assert os.waitpid(child, 0)[1] == 0
        file.seek(0)
        assert file.read() == b"content"
    assert fs.cat(f"{path}/f") == b"content"


def _inherited(fs: Any, file: Any, path: str) -> bool:
    try:
        return _reads(fs, file, path) == (b"content", b"content")
    except BaseException:
        return False


def test_it_pickles(fs: Any, here: Here) -> None:
    path, behind = here
    (behind / "f").write_bytes(b"content")
    assert pickle.loads(pickle.dumps(fs)).cat(f"{path}/f") == b"content"
    with fs.open(f"{path}/f") as file:
        file.seek(3)
        again = pickle.loads(pickle.dumps(file))
        assert again.read() == b"tent"
        again.close()


def test_no_daemon(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match="no daemon runs"):
        FuseGatedFileSystem(runtime=str(tmp_path)).ls("acme/work")


def needed(name: str) -> Any:
    """The module of that name, or no test."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        need_that(False, f"{name} cannot be imported: {error}")


def test_pandas_reads_and_writes_csv(server: Server, here: Here) -> None:
    pandas = needed("pandas")
    path, behind = here
    (behind / "in.csv").write_text("name,count\na,1\nb,2\n")
    options = {"runtime": str(server.runtime)}
    frame = pandas.read_csv(f"fuse-gated://{path}/in.csv", storage_options=options)
    assert frame["count"].sum() == 3
    since = len(told(server))
    frame.to_csv(f"fuse-gated://{path}/out.csv", index=False, storage_options=options)
    assert (behind / "out.csv").read_text() == (behind / "in.csv").read_text()
    made = records(server, since, operation="create")
    assert [record["FUSE_GATED_PATH"] for record in made] == [f"/{behind.name}/out.csv"]
    # A part of a large file is read, not all of it.
    (behind / "large").write_bytes(bytes(20 * 2**20))
    since = len(told(server))
    with fsspec.open(f"fuse-gated://{path}/large", runtime=options["runtime"]) as file:
        file.seek(10 * 2**20)
        assert file.read(10) == bytes(10)
    closed = wait_for_record(server, since, operation="release", path=f"/{behind.name}/large")
    assert int(closed["FUSE_GATED_BYTES"]) < 3 * 2**20


def test_duckdb_reads_and_writes(fs: Any, here: Here) -> None:
    """By duckdb's own readers, which ask for parts of a file from several threads."""
    path, behind = here
    for number in range(3):
        (behind / f"in{number}.csv").write_text(f"name,count\na,{number}\nb,10\n")
    url = f"fuse-gated://{path}"
    with needed("duckdb").connect() as duckdb:
        duckdb.register_filesystem(fs)

        def ask(query: str) -> Any:
            return duckdb.execute(query).fetchall()

        assert ask(f"SELECT sum(count) FROM '{url}/in0.csv'") == [(10,)]
        by_name = ask(f"SELECT filename, sum(count) FROM read_csv('{url}/in*.csv', filename = true) GROUP BY 1 ORDER BY 1")
        assert by_name == [(f"{url}/in{number}.csv", 10 + number) for number in range(3)]
        for _ in range(2):
            # Once anew, and once in the place of what is there.
            ask(f"COPY (FROM '{url}/in1.csv') TO '{url}/out.csv'")
            assert (behind / "out.csv").read_text() == "name,count\na,1\nb,10\n"
        ask(f"COPY (SELECT i, i % 3 AS k FROM range(300000) t(i)) TO '{url}/large.parquet'")
        assert ask(f"SELECT count(*), sum(i), max(k) FROM '{url}/large.parquet'") == [(300000, 44999850000, 2)]
        ask(f"COPY (SELECT i, i % 3 AS k FROM range(30) t(i)) TO '{url}/parts' (FORMAT parquet, PARTITION_BY (k))")
        assert sorted(os.listdir(behind / "parts")) == ["k=0", "k=1", "k=2"]
        parted = ask(f"SELECT k, count(*) FROM read_parquet('{url}/parts/**/*.parquet') GROUP BY 1 ORDER BY 1")
        assert parted == [(0, 10), (1, 10), (2, 10)]
        refused = f"fuse-gated://{TOP}/no-read/f"
        with pytest.raises(Exception, match="Permission denied"):
            ask(f"FROM read_csv('{refused}')")
        with pytest.raises(Exception, match="Permission denied"):
            ask(f"COPY (SELECT 1) TO 'fuse-gated://{TOP}/no-write/out.csv'")


@pytest.fixture(params=["threads", "processes"])
def scheduler(request: pytest.FixtureRequest) -> Iterator[None]:
    with needed("dask").config.set(scheduler=request.param, num_workers=2):
        yield


def test_dask_reads_and_writes_text(server: Server, here: Here, scheduler: None) -> None:
    """In processes, which are not forked, the filesystem is made anew from what was pickled of it."""
    bag = needed("dask.bag")
    path, behind = here
    options = {"runtime": str(server.runtime)}
    bag.from_sequence(range(3000), npartitions=3).map(str).to_textfiles(f"fuse-gated://{path}/*.txt", storage_options=options)
    assert (behind / "1.txt").read_text() == "\n".join(map(str, range(1000, 2000)))
    # More parts than files: each is read from somewhere within its file.
    lines = bag.read_text(f"fuse-gated://{path}/*.txt", blocksize=1500, storage_options=options)
    assert lines.npartitions > 6
    assert lines.map(int).sum().compute() == sum(range(3000))


def test_dask_reads_and_writes_frames(server: Server, here: Here, scheduler: None) -> None:
    needed("pandas")
    frames = needed("dask.dataframe")
    path, behind = here
    options = {"runtime": str(server.runtime)}
    for number in range(2):
        (behind / f"in{number}.csv").write_text("name,count\n" + "".join(f"r{row},{row}\n" for row in range(1000)))
    table = frames.read_csv(f"fuse-gated://{path}/in*.csv", blocksize=3000, storage_options=options)
    assert table.npartitions > 2
    table.to_csv(f"fuse-gated://{path}/out-*.csv", index=False, storage_options=options)
    assert len(list(behind.glob("out-*.csv"))) == table.npartitions
    again = frames.read_csv(f"fuse-gated://{path}/out-*.csv", storage_options=options)
    assert again["count"].sum().compute() == 2 * sum(range(1000))
    table.to_parquet(f"fuse-gated://{path}/parquet", storage_options=options)
    parquet = frames.read_parquet(f"fuse-gated://{path}/parquet", storage_options=options)
    assert parquet["count"].sum().compute() == 2 * sum(range(1000))
