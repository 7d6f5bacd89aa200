"""One thread: the machine's cores are for the tests beside."""

import pytest

torch = pytest.importorskip("torch")
torch.set_num_threads(1)
