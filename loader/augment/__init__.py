"""Random changes of images and masks, decided by seed, epoch and row."""

from loader.augment.parameters import Parameters, draw_parameters
from loader.augment.settings import Augment

__all__ = ["Augment", "Parameters", "draw_parameters"]
