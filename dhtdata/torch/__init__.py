"""PyTorch: `DataLoader` over a mounted dataset (door of ``torch``; nothing else in dhtdata imports it unasked)."""

from dhtdata.torch.loader import DataLoader

__all__ = ["DataLoader"]
