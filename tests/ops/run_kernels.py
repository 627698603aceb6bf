"""``python -m tests.ops.run_kernels [BACKEND]``: every kernel on every sample, for a sanitizer to watch.

BACKEND is ``cuda`` or ``cuda_emulated``.
"""

import sys

import torch

from tests.ops.cases import all_cases, device_of, on_device


def run(backend: str, skip_larger_than: float = float("inf")) -> int:
    """Call every operator that `backend` has on every sample in every type; returns the number of calls."""
    count, device = 0, device_of(backend)
    for case in all_cases():
        for sample in case.samples.values() if case.op.absent(backend) is None else ():
            for dtype in case.dtypes:
                args = sample(dtype)
                if _size(args) <= skip_larger_than:
                    case.op(*on_device(device, args), backend=backend)
                    count += 1
    return count


def _size(args: object) -> int:
    if isinstance(args, torch.Tensor):
        return args.numel()
    return sum(_size(a) for a in args) if isinstance(args, (list, tuple)) else 0


def main() -> None:
    backend = sys.argv[1] if len(sys.argv) > 1 else "cuda"
    count = run(backend)
    if backend == "cuda":
        torch.cuda.synchronize()
    print(f"{count} calls")


if __name__ == "__main__":
    main()
