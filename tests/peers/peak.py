"""The machine's float32 peak as matrix products see it: the best of many products 2048×1024×1024 in PyTorch.

    python peak.py --threads 1
"""

import argparse
import json
import time

import torch

SHAPE = (2048, 1024, 1024)

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--repeat", type=int, default=60)
arguments = parser.parse_args()
torch.set_num_threads(arguments.threads)
torch.manual_seed(0)
rows, inner, columns = SHAPE
a, b, c = torch.randn(rows, inner), torch.randn(inner, columns), torch.empty(rows, columns)
seconds = []
for _ in range(arguments.repeat):
    start = time.perf_counter()
    torch.mm(a, b, out=c)
    seconds.append(time.perf_counter() - start)
print(json.dumps({"threads": arguments.threads, "shape": SHAPE, "flops_per_second": 2 * rows * inner * columns / min(seconds)}))
