import fcntl
import os
import stat

import pytest

from recall_lightning.weights.atomic import atomic_file, atomic_folder, write_whole


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def leave_a_dead_folder(target):
    """What a process killed inside the block leaves: the temporary folder, its lock released."""
    child = os.fork()
    if child == 0:
        try:
            with atomic_folder(target):
                os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_nothing_is_seen_until_the_end_and_nothing_else_is_left(tmp_path):
    out = tmp_path / "out"
    with atomic_folder(out) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "x").write_text("x")
        assert not out.exists()
    assert (out / "sub" / "x").read_text() == "x"
    assert names(tmp_path) == names(out.parent) == ["out"]
    assert names(out) == ["sub"]


def test_the_folder_has_ordinary_permissions(tmp_path):
    (tmp_path / "usual").mkdir()
    with atomic_folder(tmp_path / "out"):
        pass
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("usual", "out")}
    assert len(modes) == 1


def fill(target, then):
    with atomic_folder(target) as folder:
        (folder / "mine").touch()
        then(folder)


def fail(error):
    raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_nothing_not_even_the_parents(tmp_path, error):
    with pytest.raises(error):
        fill(tmp_path / "a" / "b" / "out", lambda folder: fail(error))
    assert names(tmp_path) == []


def test_parents_that_somebody_else_uses_meanwhile_stay(tmp_path):
    with pytest.raises(FileNotFoundError):
        fill(tmp_path / "a" / "out", lambda folder: (tmp_path / "a" / "b" / "c").mkdir())
    assert names(tmp_path) == []
    with pytest.raises(FileExistsError):
        fill(tmp_path / "a" / "out", lambda folder: [(tmp_path / "a" / "b").mkdir() for _ in "12"])
    assert names(tmp_path / "a") == ["b"]


def test_missing_parents_are_made(tmp_path):
    with atomic_folder(tmp_path / "a" / "b" / "out"):
        pass
    assert names(tmp_path / "a" / "b") == ["out"]


def test_an_empty_folder_is_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "x").touch()
    assert names(tmp_path / "out") == ["x"]


@pytest.mark.parametrize("kind", ["full folder", "file", "link", "dangling link"])
def test_what_exists_is_refused_before_anything_is_made(tmp_path, kind):
    out = tmp_path / "out"
    if kind == "full folder":
        out.mkdir()
        (out / "x").touch()
    elif kind == "file":
        out.touch()
    else:
        (tmp_path / "empty").mkdir()
        out.symlink_to(tmp_path / ("empty" if kind == "link" else "absent"))
    before = names(tmp_path)
    with pytest.raises(ValueError, match="out exists already: remove it"), atomic_folder(out):
        pytest.fail("entered")
    assert names(tmp_path) == before


def test_a_mount_point_is_refused_at_the_start(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr("pathlib.Path.is_mount", lambda path: path.name == "out")
    with pytest.raises(ValueError, match="mount point"), atomic_folder(tmp_path / "out"):
        pytest.fail("entered")


def test_a_parent_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").touch()
    for target in (tmp_path / "file" / "out", tmp_path / "file" / "deeper" / "out"):
        with (
            pytest.raises(ValueError, match=r"no folder can be made in .*file"),
            atomic_folder(target),
        ):
            pytest.fail("entered")
    assert names(tmp_path) == ["file"]


def test_a_target_that_appears_meanwhile_is_not_touched(tmp_path):
    out = tmp_path / "out"

    def appear(folder):
        out.mkdir()
        (out / "theirs").touch()

    with pytest.raises(ValueError, match="out could not be put in place"):
        fill(out, appear)
    assert names(tmp_path) == ["out"]
    assert names(out) == ["theirs"]


def test_the_folder_of_a_process_still_going_is_left_alone(tmp_path):
    out = tmp_path / "out"

    def second_run(folder):
        fill(out, lambda other: None)
        assert names(folder) == ["mine"]

    with pytest.raises(ValueError, match="appeared meanwhile"):
        fill(out, second_run)
    assert names(tmp_path) == ["out"]


def test_the_folders_of_dead_processes_are_removed_and_no_other(tmp_path):
    leave_a_dead_folder(tmp_path / "other")
    leave_a_dead_folder(tmp_path / "out.partial-abcdefgh")
    (tmp_path / ".out.partial-ofsomebody").mkdir()
    kept = names(tmp_path)
    leave_a_dead_folder(tmp_path / "out")
    leave_a_dead_folder(tmp_path / "sub" / ".." / "out")
    assert len(names(tmp_path)) == len(kept) + 1  # the second run removed the first's
    fill(tmp_path / "out", lambda folder: None)
    assert names(tmp_path) == [*kept, "out"]


def test_a_folder_that_is_removed_as_a_leftover_before_it_is_locked_is_made_again(
    tmp_path, monkeypatch
):
    out = tmp_path / "out"
    plain = fcntl.flock

    def meanwhile(descriptor, operation):
        monkeypatch.setattr(fcntl, "flock", plain)
        fill(out, lambda folder: None)
        (out / "mine").unlink()
        plain(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", meanwhile)
    fill(out, lambda folder: (folder / "again").touch())
    assert names(out) == ["again", "mine"]
    assert names(tmp_path) == ["out"]


def test_everything_is_flushed_before_the_rename(tmp_path, monkeypatch):
    done = []
    flush, rename = os.fsync, os.rename

    def noted_flush(descriptor):
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        flush(descriptor)

    def noted_rename(old, new):
        done.append("rename")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", noted_flush)
    monkeypatch.setattr(os, "rename", noted_rename)
    with atomic_folder(tmp_path / "a" / "out") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "x").touch()
        (folder / "y").touch()
    at = done.index("rename")
    assert sorted(done[:at]) == ["out", "sub", "x", "y"]
    assert done[at + 1 :] == ["a", tmp_path.name]


def test_a_file_is_replaced_only_by_the_whole_of_the_next(tmp_path):
    write_whole(tmp_path / "a", "old")
    with atomic_file(tmp_path / "a") as file:
        file.write(b"ne")
        file.write(b"w")
        assert (tmp_path / "a").read_text() == "old"
    assert (tmp_path / "a").read_text() == "new"
    assert names(tmp_path) == ["a"]


def test_a_file_may_get_its_name_at_the_end(tmp_path):
    with atomic_file(tmp_path / "a") as file:
        file.write(b"x")
        file.target = tmp_path / "b"
    assert names(tmp_path) == ["b"]


def test_a_file_has_ordinary_permissions_and_its_parents_are_made(tmp_path):
    (tmp_path / "usual").touch()
    write_whole(tmp_path / "sub" / "a", b"")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("usual", "sub/a")}
    assert len(modes) == 1


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path, error):
    def half(target):
        with atomic_file(target) as file:
            file.write(b"half")
            raise error

    write_whole(tmp_path / "a", "old")
    for target in (tmp_path / "a", tmp_path / "sub" / "b"):
        with pytest.raises(error):
            half(target)
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_what_a_killed_writer_of_the_file_left_is_removed(tmp_path):
    leave_a_dead_folder(tmp_path / "a")
    write_whole(tmp_path / "a", "x")
    assert names(tmp_path) == ["a"]


def test_a_write_that_the_system_cuts_short_is_continued(tmp_path, monkeypatch):
    plain = os.write
    monkeypatch.setattr(os, "write", lambda file, data: plain(file, data[:3]))
    write_whole(tmp_path / "a", "0123456789")
    assert (tmp_path / "a").read_text() == "0123456789"


@pytest.mark.parametrize("make", [atomic_file, atomic_folder])
def test_leftovers_make_room_before_a_full_disk_is_told(make, tmp_path, monkeypatch):
    leave_a_dead_folder(tmp_path / "a")
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="No space left"), make(tmp_path / "sub" / "a", 11):
        pytest.fail("entered")
    with pytest.raises(OSError, match="No space left"), make(tmp_path / "a", 11):
        pytest.fail("entered")
    assert names(tmp_path) == []


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_that_were_written_as_private_ones_get_the_modes_of_the_umask(tmp_path, mask):
    (tmp_path / "other").touch(0o600)
    before = os.umask(mask)
    try:
        with atomic_folder(tmp_path / "out") as folder:
            (folder / "in").mkdir()
            for path in (folder / "a", folder / "in" / "b"):
                path.touch(0o600)
            (folder / "link").symlink_to(tmp_path / "other")
    finally:
        os.umask(before)
    for name in ("a", "in/b"):
        assert (tmp_path / "out" / name).stat().st_mode & 0o777 == 0o666 & ~mask
    assert (tmp_path / "other").stat().st_mode & 0o777 == 0o600


def test_a_link_that_is_called_as_a_leftover_is_left_alone_with_what_it_leads_to(tmp_path):
    target, elsewhere = tmp_path / "run" / "a.txt", tmp_path / "elsewhere"
    write_whole(target, "first")
    elsewhere.mkdir()
    (target.parent / ".a.txt.partial-abcdefgh").symlink_to(elsewhere)
    write_whole(target, "second")
    assert list(elsewhere.iterdir()) == []
