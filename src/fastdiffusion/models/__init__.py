"""A trained model as a frozen value, and the file that holds it."""

from .model import FILE, Model, export_folder, load, load_autoencoder, save

__all__ = ["FILE", "Model", "export_folder", "load", "load_autoencoder", "save"]
