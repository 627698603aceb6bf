"""``python -m tests.ops.run_on_gpu``: every CUDA kernel on every sample, for compute-sanitizer to watch."""

import torch

from tests.ops.cases import all_cases, on_device


def main() -> None:
    count = 0
    for case in all_cases():
        for sample in case.samples.values() if case.op.absent("cuda") is None else ():
            for dtype in case.dtypes:
                case.op(*on_device("cuda", sample(dtype)), backend="cuda")
                count += 1
    torch.cuda.synchronize()
    print(f"{count} calls")


if __name__ == "__main__":
    main()
