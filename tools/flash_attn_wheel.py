"""Print the address of the flash-attn wheel for the torch, CUDA and Python that run this: flash_attn_wheel.py 2.8.3."""

import platform
import re
import sys

RELEASES = "https://github.com/Dao-AILab/flash-attention/releases/download"


def wheel(release: str, torch: str, cuda: str | None, abi: bool, python: tuple[int, int], machine: str) -> str:
    """Return the address by the project's naming; the wheel need not exist for every combination.

    `torch` as 2.9.1+cu128, `cuda` as 12.8 (None: a CPU build). Raises ValueError for what no wheel is made for.
    """
    if re.fullmatch(r"\d+(\.\d+)+(\.post\d+)?", release) is None:
        raise ValueError(f"{release!r} is no flash-attn release; give one such as 2.8.3")
    if cuda is None:
        raise ValueError(f"torch {torch} is a CPU build and flash-attn needs CUDA: build with TORCH=cu128 or another")
    minor = ".".join(torch.split(".")[:2])
    tag = f"cp{python[0]}{python[1]}"
    name = f"flash_attn-{release}+cu{cuda.split('.')[0]}torch{minor}cxx11abi{str(abi).upper()}"
    return f"{RELEASES}/v{release}/{name}-{tag}-{tag}-linux_{machine}.whl"


def main() -> None:
    import torch

    try:
        facts = (torch.__version__, torch.version.cuda, torch.compiled_with_cxx11_abi(), sys.version_info[:2])
        print(wheel(sys.argv[1], *facts, platform.machine()))
    except (IndexError, ValueError) as error:
        sys.exit(f"flash_attn_wheel.py: {error}")


if __name__ == "__main__":
    main()
