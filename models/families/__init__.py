"""Model families by name. A family's module is imported when it is first asked for, so that importing stays fast.

To add one: write a module here with a `FAMILY` and name it in `MODULES`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from importlib import import_module

from peakline.models.workload import Family

__all__ = ["FAMILIES", "MODULES", "load_family"]

MODULES = {
    "decoder": "peakline.models.families.decoder",
    "bert": "peakline.models.families.bert",
    "t5": "peakline.models.families.t5",
    "mamba": "peakline.models.families.mamba",
    "resnet": "peakline.models.families.resnet",
    "vgg": "peakline.models.families.vgg",
    "mobilenet": "peakline.models.families.mobilenet",
    "efficientnet": "peakline.models.families.efficientnet",
    "inception": "peakline.models.families.inception",
    "xception": "peakline.models.families.xception",
    "convnext": "peakline.models.families.convnext",
    "separable": "peakline.models.families.separable",
    "resnet8": "peakline.models.families.resnet8",
    "autoencoder": "peakline.models.families.autoencoder",
    "vit": "peakline.models.families.vit",
    "dit": "peakline.models.families.dit",
    "unet": "peakline.models.families.unet",
}
"""Family name → the module that defines `FAMILY`."""


class _Families(Mapping[str, Family]):
    """The families, each imported on first access."""

    def __getitem__(self, name: str) -> Family:
        if name not in MODULES:
            raise KeyError(name)
        family = import_module(MODULES[name]).FAMILY
        assert isinstance(family, Family)
        return family

    def __iter__(self) -> Iterator[str]:
        return iter(MODULES)

    def __len__(self) -> int:
        return len(MODULES)


FAMILIES: Mapping[str, Family] = _Families()
"""Every model family by name."""


def load_family(name: str) -> Family:
    """The family of that name.

    Raises:
        ValueError: unknown; the message names the nearest and all known.
    """
    if name in MODULES:
        return FAMILIES[name]
    near = difflib.get_close_matches(name, MODULES, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"model family {name!r} is unknown{hint} Known: {', '.join(MODULES)}")
