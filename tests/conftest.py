"""What all tests need before anything is imported."""

import os

# One thread for each test process: with several at work, OpenMP's spinning threads slow one another down a hundredfold.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

from hypothesis import settings

settings.register_profile("alignkit", deadline=None)  # an example may wait for another process: no test is timed
settings.load_profile("alignkit")
