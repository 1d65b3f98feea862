"""The words of the simulated marketplace: themes, product kinds, store categories, brands. All of them invented.

A *theme* is what a user has in mind (a camping trip); a *kind* is a product that belongs to one theme (a mummy
sleeping bag); a *category* is the shelf where the store keeps it (Home > Bedding & Blankets). A theme reaches over ten
or more categories and a category holds kinds of up to twenty-five themes, so a user's categories say little about the
theme, while the meaning of the words says much. The name of the theme itself is not among its words.
"""

import json
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

WORDS = Path(__file__).with_name("marketplace_vocabulary.json")


class Kind(BaseModel, extra="forbid", frozen=True):
    """A product of one theme, under the two names that people have for it."""

    name: str
    alias: str
    category: str
    median_price: float
    """In whole units of currency; the prices of its items are lognormal around it."""


class Theme(BaseModel, extra="forbid", frozen=True):
    """What a user has in mind, and the words that go with it."""

    neighbours: list[str]
    """Themes whose items may also serve this one."""
    brands: list[str]
    """Brands that make things for this theme only."""
    looks: list[str]
    """Adjectives that fit any of its products."""
    occasions: list[str]
    """Phrases that begin with "for"."""
    kinds: list[Kind]


class Category(BaseModel, extra="forbid", frozen=True):
    """A shelf of the store, with the attributes that its items may have, whatever their theme."""

    sizes: list[str]
    materials: list[str]
    features: list[str]
    coloured: bool


class Vocabulary(BaseModel, extra="forbid", frozen=True):
    """All the words. Positions in its dicts and lists are the codes used everywhere else in the simulator."""

    colours: list[str]
    plain_looks: list[str]
    brands: list[str]
    """Brands that make everything."""
    categories: dict[str, Category]
    themes: dict[str, Theme]

    def kinds(self) -> list[Kind]:
        """All kinds, those of a theme side by side, themes in order."""
        return [kind for theme in self.themes.values() for kind in theme.kinds]

    def all_brands(self) -> list[str]:
        """The brands that make everything, then those of each theme in order."""
        return self.brands + [brand for theme in self.themes.values() for brand in theme.brands]

    def kind_themes(self) -> NDArray[np.int16]:
        """(kinds,) code of the theme of each kind."""
        return np.array([code for code, theme in enumerate(self.themes.values()) for _ in theme.kinds], np.int16)

    def kind_categories(self) -> NDArray[np.int16]:
        """(kinds,) code of the category of each kind."""
        codes = {path: code for code, path in enumerate(self.categories)}
        return np.array([codes[kind.category] for kind in self.kinds()], np.int16)


@cache
def vocabulary() -> Vocabulary:
    """The vocabulary, read once."""
    words = Vocabulary.model_validate(json.loads(WORDS.read_text(encoding="utf-8")))
    names = [name for kind in words.kinds() for name in (kind.name, kind.alias)]
    # A query's text must say which kind it asks for, and a brand which theme it leans to.
    assert len(set(names)) == len(names), "two kinds share a name"
    assert len(set(words.all_brands())) == len(words.all_brands()), "two brands share a name"
    assert all(neighbour in words.themes for theme in words.themes.values() for neighbour in theme.neighbours)
    return words


def title_case(phrase: str) -> str:
    """Capitals as a shop writes them; `str.title` would spoil RGB and 8x42."""
    small = {"and", "at", "by", "for", "from", "in", "of", "on", "the", "to", "with"}
    return " ".join(word if word in small else word[0].upper() + word[1:] for word in phrase.split())
