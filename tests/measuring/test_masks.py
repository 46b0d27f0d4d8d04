import torch

from recall_lightning.measuring.masks import token_mask

MASK = torch.tensor([[1, 1, 0]])


def test_the_mask_is_found_in_a_mapping_or_in_a_pair_that_starts_with_one():
    expected = [[True, True, False]]
    assert token_mask({"attention_mask": MASK}).tolist() == expected
    assert token_mask(({"attention_mask": MASK}, torch.zeros(1))).tolist() == expected


def test_where_there_is_no_mask_there_is_none():
    assert token_mask(torch.zeros(1, 3)) is None
    assert token_mask({"input_ids": MASK}) is None
    assert token_mask([]) is None


def test_a_decoder_has_its_own_mask_or_its_labels():
    batch = {"attention_mask": MASK, "labels": torch.tensor([[5, -100]])}
    assert token_mask(batch, decoder=True).tolist() == [[True, False]]
    batch["decoder_attention_mask"] = torch.tensor([[0, 1]])
    assert token_mask(batch, decoder=True).tolist() == [[False, True]]
