"""Names of files that other files give: bare ones, of files that lie where they seem to lie."""

import os
from pathlib import Path


def file_inside(folder: Path, name: object, named_by: Path | None = None) -> Path:
    """Return the path of a folder's file whose name was found in a file or a listing.

    A name that was read says what is in its folder and nothing else: ``../model.safetensors``, an
    absolute path or a link to another folder would make a model out of files that are not its own,
    or copy a file of the user's into what they publish. The folder itself may be a link, and the
    cache of the Hugging Face hub is one folder: files of ``snapshots/<revision>`` may be links
    into the ``blobs`` beside ``snapshots``.

    Args:
        folder: The folder that the user named.
        name: The file's name; it need not exist.
        named_by: The file that it was read in, which an error names.

    Raises:
        ValueError: If the name is no bare file name, or the file is a link that leads elsewhere.

    Example:
        >>> file_inside(Path("model"), "model-00001-of-00002.safetensors")
        PosixPath('model/model-00001-of-00002.safetensors')
        >>> file_inside(Path("model"), "../a.safetensors", Path("model/index.json"))
        Traceback (most recent call last):
        ValueError: model/index.json names the file '../a.safetensors', which is no bare ...
    """
    if not (isinstance(name, str) and is_bare(name)):
        raise ValueError(
            f"{named_by or folder} names the file {name!r}, which is no bare file name: a model's "
            "files lie in its own folder"
        )
    refuse_link_out(folder, folder / name)
    return folder / name


def is_bare(name: object) -> bool:
    r"""Tell whether a name is one of a file in a folder, on any system, and no path.

    Example:
        >>> [is_bare(name) for name in ("a.json", "", ".", "..", "b/a", r"b\a", "a\0", "C:a", 3)]
        [True, False, False, False, False, False, False, False, False]
    """
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and not any(character in name for character in "/\\:")
        and name.isprintable()
    )


def refuse_link_out(folder: Path, file: Path) -> None:
    """Check that a file below a folder is no link that leads out of it.

    Raises:
        ValueError: If it is, unless it leads to where the hub's cache keeps its files.
    """
    root, real = Path(os.path.realpath(folder)), Path(os.path.realpath(file))
    in_cache = root.parent.name == "snapshots" and real.parent == root.parent.parent / "blobs"
    if not (real.is_relative_to(root) or in_cache):
        raise ValueError(
            f"{file} is a link to {real}, outside of its folder: copy the file in its place"
        )
