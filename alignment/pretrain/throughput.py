"""Model FLOPs utilisation: achieved over peak arithmetic; left out where the peak is not known for certain."""

from __future__ import annotations

import re

# Dense bf16 tensor-core peaks, FLOP/s, from the vendors' data sheets (figures "with sparsity" halved). The whole name
# must match: a variant of the same family has another peak, and a wrong MFU is worse than none.
BF16_PEAKS: list[tuple[str, float]] = [
    (r"NVIDIA B200", 2250e12),  # NVIDIA DGX B200 data sheet
    (r"NVIDIA GH200.*", 989e12),  # NVIDIA GH200 data sheet
    (r"NVIDIA H200", 989e12),  # NVIDIA H200 data sheet, SXM
    (r"NVIDIA H200 NVL", 835e12),  # NVIDIA H200 data sheet, NVL
    (r"NVIDIA H100 80GB HBM3", 989e12),  # NVIDIA H100 data sheet, SXM
    (r"NVIDIA H100 PCIe", 756e12),  # NVIDIA H100 PCIe data sheet
    (r"NVIDIA H100 NVL", 835e12),  # NVIDIA H100 NVL data sheet
    (r"NVIDIA A100(-SXM4|-PCIE|-PG509)?-?(40|80)GB|NVIDIA A100 80GB PCIe", 312e12),  # NVIDIA A100 data sheet
    (r"NVIDIA A10", 125e12),  # NVIDIA A10 data sheet
    (r"NVIDIA L40S", 362e12),  # NVIDIA L40S data sheet
    (r"NVIDIA L4", 121e12),  # NVIDIA L4 data sheet
    (r"NVIDIA GeForce RTX 4090", 165.2e12),  # NVIDIA Ada GPU architecture, fp32 accumulation
    (r"NVIDIA GeForce RTX 3090", 71e12),  # NVIDIA Ampere GA102 architecture, fp32 accumulation
    (r"AMD Instinct MI300X( OAM)?", 1307e12),  # AMD MI300X data sheet
]


def peak_flops(device_name: str, precision: str) -> float | None:
    """Peak FLOP/s of a device at a precision; None when it is not in the table (every CPU, MIG slices, fp32)."""
    if precision != "bf16":
        return None
    return next((peak for pattern, peak in BF16_PEAKS if re.fullmatch(pattern, device_name)), None)


def model_flops_utilisation(
    tokens_per_second: float, flops_per_token: float, device_name: str, precision: str, devices: int
) -> float | None:
    """Tokens per second of all devices times FLOPs per token, over the devices' peak; None when the peak is unknown."""
    peak = peak_flops(device_name, precision)
    return None if peak is None else tokens_per_second * flops_per_token / (peak * devices)
