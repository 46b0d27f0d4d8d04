import matplotlib.image
import pytest

from recall_lightning.metrics.figures import save
from tests.metrics.figures.examples import coefficients


def test_save_writes_an_image_and_nothing_else(tmp_path):
    path = save(coefficients(), tmp_path / "run" / "figures" / "past.png")
    assert matplotlib.image.imread(path).ndim == 3
    assert [file.name for file in path.parent.iterdir()] == ["past.png"]


def test_save_replaces_whole_files_only(tmp_path, monkeypatch):
    path = save(coefficients(), tmp_path / "past.png")
    before = path.read_bytes()
    broken = coefficients()

    def fail_half_way(file, **options):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(broken, "savefig", fail_half_way)
    with pytest.raises(OSError, match="disk full"):
        save(broken, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["past.png"]
