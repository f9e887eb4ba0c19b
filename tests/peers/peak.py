"""The machine's peak as matrix products see it: the best of many products in PyTorch, 2048×1024×1024 in float32 on the processor, 8192×8192×8192 on a GPU.

    python peak.py --threads 1
    python peak.py --device cuda:0 --dtype bfloat16
"""

import argparse
import json
import time

import torch

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--repeat", type=int, default=60)
parser.add_argument("--device", default="cpu")
parser.add_argument("--dtype", default="float32")
arguments = parser.parse_args()
torch.set_num_threads(arguments.threads)
torch.manual_seed(0)
shape = (2048, 1024, 1024) if arguments.device == "cpu" else (8192, 8192, 8192)
rows, inner, columns = shape
place = {"device": arguments.device, "dtype": getattr(torch, arguments.dtype)}
a, b, c = torch.randn(rows, inner, **place), torch.randn(inner, columns, **place), torch.empty(rows, columns, **place)
seconds = []
for _ in range(arguments.repeat):
    start = time.perf_counter()
    torch.mm(a, b, out=c)
    if arguments.device != "cpu":
        torch.cuda.synchronize()
    seconds.append(time.perf_counter() - start)
print(json.dumps({"threads": arguments.threads, "shape": shape, "flops_per_second": 2 * rows * inner * columns / min(seconds)}))
