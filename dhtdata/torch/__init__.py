"""PyTorch: `DataLoader` over a mounted dataset (door of ``torch``; nothing else in dhtdata imports it unasked)."""

from dhtdata.mount.stream import Stream
from dhtdata.torch.loader import DataLoader
from dhtdata.torch.plain import register

register(Stream)

__all__ = ["DataLoader"]
