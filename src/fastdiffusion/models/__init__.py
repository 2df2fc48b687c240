"""A trained model as a frozen value, its parts, and the file that holds it."""

from .model import Model, native_denoiser
from .protocols import Autoencoder, Conditioner, Schedule, Size
from .serialization import FILE, export_folder, from_spec, load, load_autoencoder, save, spec, tensors

__all__ = [
    "FILE",
    "Autoencoder",
    "Conditioner",
    "Model",
    "Schedule",
    "Size",
    "export_folder",
    "from_spec",
    "load",
    "load_autoencoder",
    "native_denoiser",
    "save",
    "spec",
    "tensors",
]
