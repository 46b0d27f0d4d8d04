"""Draw one picture into a file: ``python -m docs.pictures NAME FILE.svg``."""

import sys
from pathlib import Path

from docs.pictures import PICTURES
from docs.pictures.style import LIGHT

name, file = sys.argv[1:]
Path(file).write_bytes(LIGHT.svg(PICTURES[name]))
