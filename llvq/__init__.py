"""llvq: a compiler that quantizes long-video diffusion models to NVFP4, and its runtime."""

__version__ = "0.1.0"
