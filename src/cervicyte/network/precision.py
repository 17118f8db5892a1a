"""In which precision this machine computes fastest."""

from __future__ import annotations

import torch


def computes_in_bfloat16(precision: str) -> bool:
    """Return whether to compute in bfloat16; `auto` asks the hardware.

    A processor without such instructions emulates them and is many times slower, not faster.
    """
    if precision != "auto":
        return precision == "bfloat16"
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    supported = (
        getattr(torch.cpu, name, lambda: False)()
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    return any(supported)
