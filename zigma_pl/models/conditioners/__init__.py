"""Conditioners and their options, which the option `conditioners` of backbones names by class_path."""

from zigma_pl.core.batch import Condition, Conditions
from zigma_pl.models.conditioners.base import Conditioner, ConditionerOptions, Entry, Sizes
from zigma_pl.models.conditioners.caption import Caption, CaptionConditioner
from zigma_pl.models.conditioners.class_label import ClassConditioner, ClassLabel
from zigma_pl.models.conditioners.map import Map, MapConditioner

__all__ = [
    "Caption",
    "CaptionConditioner",
    "ClassConditioner",
    "ClassLabel",
    "Condition",
    "Conditioner",
    "ConditionerOptions",
    "Conditions",
    "Entry",
    "Map",
    "MapConditioner",
    "Sizes",
]
