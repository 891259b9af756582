"""Small tensors travel together and arrive as they were."""

import pytest
import torch

from engine.runtime.transfer import packed, to_host, unpacked

MIXED = [
    torch.tensor(True),
    torch.arange(3, dtype=torch.int32),
    torch.tensor(1.5, dtype=torch.float64),
    torch.randn(2, 3).T,
    torch.tensor([], dtype=torch.int64),
    torch.tensor([1.25, -0.5], dtype=torch.bfloat16),
    torch.arange(2),
    torch.arange(6)[::2],
    torch.arange(8).view(1, 8)[:, 3],
    torch.tensor([[False, True]]),
]
ALIKE = [torch.tensor(2.0), torch.randn(2, 2).T]


@pytest.mark.parametrize(("tensors", "dtype"), [(MIXED, torch.uint8), (ALIKE, torch.float32)])
def test_packed_tensors_come_back_with_shape_and_type(tensors, dtype):
    flat = packed(tensors)
    assert flat.dtype == dtype and flat.ndim == 1
    for found, expected in zip(unpacked(flat, tensors), tensors, strict=True):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_what_is_on_the_host_is_not_copied():
    tensor = torch.ones(2, requires_grad=True)
    (found,) = to_host(tensor)
    assert found.data_ptr() == tensor.data_ptr() and not found.requires_grad
    assert to_host() == []
