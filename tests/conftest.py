"""One thread for every test (the models are tiny, threads cost more than they give) and repeatable properties."""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("anybatch", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("anybatch")
