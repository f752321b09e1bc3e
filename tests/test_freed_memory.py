"""With `keep_freed_memory`, new tensors reuse the pages of freed ones."""

import platform
import subprocess
import sys

import pytest

# Page faults while a tensor of 16 MiB (4,096 pages) is allocated, filled and freed ten times, in a thread of its own.
PROGRAM = """
import resource, sys, threading
import torch
from zigma_pl.core.freed_memory import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()

def allocate():
    for _ in range(10):
        torch.ones(1 << 22)

def run():
    thread = threading.Thread(target=allocate)
    thread.start()
    thread.join()

torch.set_num_threads(1)
run()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
run()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_freed_memory_is_used_again():
    def num_faults(mode):
        result = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
        return int(result.stdout)

    assert num_faults("return") > 4096
    assert num_faults("keep") < 500
