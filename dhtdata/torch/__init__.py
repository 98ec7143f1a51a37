"""PyTorch: `DataLoader` over a mounted dataset (door of ``torch``; nothing else in dhtdata imports it unasked)."""

from dhtdata.mount.dataset import StreamingDataset
from dhtdata.torch.loader import DataLoader
from dhtdata.torch.plain import register

register(StreamingDataset)

__all__ = ["DataLoader"]
