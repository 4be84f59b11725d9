"""What vendors print of the chips that targets compile for: for estimates, never a measurement.

Rates are dense, with fp32 accumulation. Where a datasheet prints them with 2:4 sparsity, they are
halved here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Product:
    """One GPU: matrix rates in TFLOP/s by dtype, memory bandwidth in TB/s, and who says so."""

    name: str
    tflops: Mapping[str, float]
    bandwidth: float
    source: str


H100_SXM = Product(
    "H100 SXM",
    {"bf16": 989.5, "fp8": 1979.0},
    3.35,
    "NVIDIA H100 Tensor Core GPU datasheet, H100 SXM, half of the rates with sparsity",
)
H200_SXM = Product(
    "H200 SXM",
    {"bf16": 989.5, "fp8": 1979.0},
    4.8,
    "NVIDIA H200 Tensor Core GPU datasheet, H200 SXM, half of the rates with sparsity",
)
B200 = Product(
    "HGX B200",
    {"bf16": 2250.0, "fp8": 4500.0, "fp4": 9000.0},
    7.7,
    "NVIDIA Blackwell datasheet, HGX B200, one GPU, dense",
)
B300 = Product(
    "HGX B300",
    {"bf16": 2250.0, "fp8": 4500.0, "fp4": 14000.0},
    7.7,
    "NVIDIA Blackwell Ultra datasheet, HGX B300, one GPU, dense",
)
GB300 = Product(
    "GB300",
    {"bf16": 2500.0, "fp8": 5000.0, "fp4": 15000.0},
    8.0,
    "NVIDIA Blackwell Ultra datasheet, GB300 NVL72, one GPU, dense",
)
RTX_PRO_6000 = Product(
    "RTX PRO 6000 Blackwell",
    {"bf16": 503.8, "fp8": 1007.6, "fp4": 2015.2},
    1.792,
    "NVIDIA RTX Blackwell PRO GPU architecture, RTX PRO 6000 Workstation Edition, dense",
)
RTX_5090 = Product(
    "GeForce RTX 5090",
    {"bf16": 209.5, "fp8": 419.0, "fp4": 1676.0},
    1.792,
    "NVIDIA RTX Blackwell GPU architecture, GeForce RTX 5090, dense",
)

# Target -> the products that have its chip.
PRODUCTS = {
    "sm_90a": (H100_SXM, H200_SXM),
    "sm_100a": (B200,),
    "sm_103a": (B300, GB300),
    "sm_120a": (RTX_PRO_6000, RTX_5090),
}
