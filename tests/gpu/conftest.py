import pytest
import torch


@pytest.fixture(autouse=True)
def gpu():
    """Every test in this folder takes a GPU and compares it with the processor."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
