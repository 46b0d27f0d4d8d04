import gzip

import pytest
import torch
from torch.nn import functional

from benchmarks.real.efficientnet import EfficientNetLite0, _scaled, same_padded
from benchmarks.real.fashion import Permuted
from benchmarks.real.images import read_idx, read_table, split


def test_an_idx_file_is_read_in_its_shape(tmp_path):
    file = tmp_path / "images.gz"
    header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (2, 1, 3))
    file.write_bytes(gzip.compress(header + bytes([1, 2, 3, 4, 5, 255])))
    assert read_idx(file).tolist() == [[[1, 2, 3]], [[4, 5, 255]]]


@pytest.mark.parametrize(
    "content", [b"\x00\x00\x0d\x01\x00\x00\x00\x01\x00", b"\x00\x00\x08\x01\x00\x00\x00\x02\x00"]
)
def test_another_idx_file_is_refused(tmp_path, content):
    file = tmp_path / "images.gz"
    file.write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=r"idx|reshape"):
        read_idx(file)


def test_a_table_of_pictures_has_the_label_last(tmp_path):
    file = tmp_path / "digits.csv.gz"
    file.write_bytes(gzip.compress(b"0,1,2,255,7\n9,8,7,6,0\n"))
    images, labels = read_table(file)
    assert images.tolist() == [[[0, 1], [2, 255]], [[9, 8], [7, 6]]]
    assert labels.tolist() == [7, 0]


def test_no_picture_is_both_trained_on_and_held_out():
    pictures = torch.arange(20).view(20, 1, 1), torch.arange(20)
    (images, train), (_, held_out) = split(pictures, 5, seed=3)
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(20))
    assert len(held_out) == 5
    assert images.flatten().equal(train)


def test_a_permuted_picture_has_the_same_pixels_elsewhere():
    images, order = (
        torch.tensor([[[0, 51], [102, 255]]], dtype=torch.uint8),
        torch.tensor([3, 0, 1, 2]),
    )
    pixels, label = Permuted((images, torch.tensor([4])), order)[0]
    assert pixels.tolist() == pytest.approx([1, 0, 0.2, 0.4])
    assert label == 4


@pytest.mark.parametrize(("size", "kernel", "stride"), [(7, 3, 1), (8, 3, 2), (7, 5, 2), (8, 5, 1)])
def test_padding_leaves_a_stride_th_of_the_places(size, kernel, stride):
    padded = same_padded(torch.ones(1, 1, size, size), kernel, stride)
    found = functional.conv2d(padded, torch.ones(1, 1, kernel, kernel), stride=stride)
    assert found.shape[2:] == (-(-size // stride),) * 2


def test_padding_of_an_odd_number_comes_behind():
    assert same_padded(torch.ones(1, 1, 4, 4), 3, 2)[0, 0, 0].tolist() == [1, 1, 1, 1, 0]


def test_the_network_has_the_published_number_of_weights():
    network = EfficientNetLite0()
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_652_008
    assert network(torch.zeros(2, 3, 40, 33)).shape == (2, 1000)


def test_pictures_of_all_tasks_fit_into_one_batch():
    wide, small = (torch.zeros(2, side, side, dtype=torch.uint8) for side in (28, 8))
    sizes = {_scaled((images, torch.zeros(2))).tensors[0].shape for images in (wide, small)}
    assert sizes == {(2, 1, 28, 28)}
