"""Reads category, brand, model and attributes off the texts of a shop by rules, without a model.

Ours, not the paper's: ELLM-rele lets large models read the texts. Rules read less and err in ways that can be named: a
brand is a name that titles of the corpus begin with, a model is a word of letters and digits, an attribute is a number
with a unit, a colour or a material, and the category is what is left. English titles and units.
"""

import html
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Self

from embedders.relevance_prompts import Facts, QueryItem, fact


def _word_set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_UNITS = {
    "in": "in inch inches",
    "ft": "ft foot feet",
    "yd": "yd yard yards",
    "mm": "mm millimeter millimeters",
    "cm": "cm centimeter centimeters",
    "m": "meter meters",
    "sq ft": "sqft",
    "cu ft": "cuft",
    "oz": "oz ounce ounces",
    "lb": "lb lbs pound pounds",
    "g": "gram grams",
    "kg": "kg",
    "gal": "gal gallon gallons",
    "qt": "qt quart quarts",
    "l": "liter liters litre litres",
    "ml": "ml",
    "v": "v volt volts",
    "w": "w watt watts",
    "amp": "amp amps ampere",
    "gpm": "gpm",
    "btu": "btu btus",
    "hp": "hp horsepower",
    "gauge": "gauge ga",
    "gb": "gb",
    "tb": "tb",
    "pack": "pack packs pk count ct piece pieces pc",
    "light": "light lights",
    "door": "door doors",
    "drawer": "drawer drawers",
    "panel": "panel panels",
    "handle": "handle handles",
    "hole": "hole holes",
    "ton": "ton tons",
}
_UNIT_OF = {name: unit for unit, names in _UNITS.items() for name in names.split()}

_COLOURS = _word_set(
    "almond amber beige biscuit black blue bone bronze brown burgundy cherry chestnut chrome copper cream "
    "espresso gold gray green grey ivory khaki maple maroon navy nickel orange pewter pink purple red rust silver "
    "tan teal turquoise violet walnut white yellow"
)
_MATERIALS = _word_set(
    "acrylic aluminum aluminium bamboo brass canvas cast cedar ceramic composite concrete cotton fiberglass foam "
    "galvanized glass granite iron laminate leather linen marble metal mdf nylon oak pine plastic plywood "
    "polyester porcelain pvc resin rubber silicone slate solid stainless steel stone teak travertine vinyl wicker "
    "wood wooden wool zinc"
)
_SAME_WORD = {"grey": "gray", "aluminium": "aluminum", "wooden": "wood"}
_EMPTY_WORDS = _word_set(
    "a an and the of to on at by or is it my your new best cheap with without for in inside outside under over "
    "from as x + & / - only"
)
_NUMBER = r"\d+(?:[-\s]\d+/\d+|/\d+|\.\d+)?"
_MEASURE = re.compile(rf"(?<![\w./])({_NUMBER})[\s-]*({'|'.join(sorted(_UNIT_OF, key=len, reverse=True))})\b\.?")
_SIZES = re.compile(rf"(?<![\w./])({_NUMBER}(?:\s*x\s*{_NUMBER})+)(?![\w/])")
_WORD = re.compile(r"[a-z0-9]+(?:[-/.'+&][a-z0-9]+)*")
_MODEL = re.compile(r"(?=[a-z0-9-]*\d)(?=[a-z0-9-]*[a-z])[a-z0-9]+(?:-[a-z0-9]+)*")
_CUT = re.compile(r"\s(?:in|with|for|without|and includes|includes)\s|[(,;]|\s-\s")
_LEADING = re.compile(r"[A-Z][A-Za-z&+.'-]*")

MIN_MODEL_LETTERS = 4


class Read(NamedTuple):
    """What rules find in one text.

    Attributes:
        category: the words left, in order, singular; the last is the thing itself.
        brand: lower case, or empty.
        models: words of letters and digits, without hyphens.
        attributes: values by kind: a unit, `size`, `colour`, `material`.
    """

    category: tuple[str, ...]
    brand: str
    models: tuple[str, ...]
    attributes: dict[str, tuple[str, ...]]

    def facts(self, category: str | None = None) -> Facts:
        """As the teacher's format has them; `category` in place of the words left, where it is known."""
        said = [
            f"{value} {kind}" if kind in _UNITS else value
            for kind, values in self.attributes.items()
            for value in values
        ]
        return Facts(
            category=fact(" ".join(self.category) if category is None else category),
            brand=fact(self.brand),
            model=fact(" ".join(self.models)),
            attributes=fact(", ".join(said)),
        )


@dataclass(frozen=True)
class TitleReader:
    """Reads queries and items of one catalogue.

    Attributes:
        brands: names of brands, lower case, words parted by one blank.
    """

    brands: frozenset[str] = frozenset()

    @classmethod
    def of_titles(cls, titles: Iterable[str], brands: Iterable[str | None] = (), *, min_titles: int = 5) -> Self:
        """Learn brand names: those given, and what at least `min_titles` distinct titles begin with.

        A leading word counts as a name when at least half of the titles that hold it begin with it; it is continued
        by the next word while at least 60 % of its titles go on so.
        """
        leading: Counter[tuple[str, ...]] = Counter()
        anywhere: Counter[str] = Counter()
        for title in dict.fromkeys(titles):
            words = html.unescape(title).split()
            anywhere.update({word.lower() for word in words})
            names = [word.lower() for word in words[:3] if _LEADING.fullmatch(word)]
            for length in range(1, len(names) + 1):
                if words[length - 1].lower() != names[length - 1]:
                    break
                leading[tuple(names[:length])] += 1
        found = {" ".join(_words(brand)) for brand in brands if brand}
        for name, count in leading.items():
            if len(name) > 1 or count < min_titles or count < anywhere[name[0]] / 2 or name[0] in _EMPTY_WORDS:
                continue
            longest = name
            while longer := [
                other
                for other, times in leading.items()
                if len(other) == len(longest) + 1 and other[:-1] == longest and times >= 0.6 * leading[longest]
            ]:
                longest = longer[0]
            found.add(" ".join(longest))
        return cls(frozenset(found - {""}))

    def query(self, pair: QueryItem) -> Read:
        """What the query asks for."""
        return self._read(pair.query, brand=None, anywhere=True)

    def item(self, pair: QueryItem) -> Read:
        """What the item is: its fields where they are known, else its title."""
        read = self._read(pair.title, brand=pair.brand, anywhere=False)
        if pair.attributes:
            more = self._read(pair.attributes, brand="", anywhere=False)
            kinds = dict.fromkeys([*read.attributes, *more.attributes])
            joined = {
                kind: tuple(dict.fromkeys([*read.attributes.get(kind, ()), *more.attributes.get(kind, ())]))
                for kind in kinds
            }
            read = read._replace(attributes=joined, models=tuple(dict.fromkeys([*read.models, *more.models])))
        return read

    def _read(self, text: str, *, brand: str | None, anywhere: bool) -> Read:
        plain = _plain(text)
        attributes: dict[str, list[str]] = {}

        def note(kind: str, value: str) -> None:
            if value not in attributes.setdefault(kind, []):
                attributes[kind].append(value)

        def measure(found: re.Match[str]) -> str:
            note(_UNIT_OF[found[2]], re.sub(r"\s+", "-", found[1]))
            return " " if _UNIT_OF[found[2]] not in ("light", "door", "drawer", "panel", "handle") else f" {found[2]} "

        def size(found: re.Match[str]) -> str:
            note("size", re.sub(r"\s+", "", found[1]))
            return " "

        brand = self._brand(_words(plain), anywhere) if brand is None else " ".join(_words(_plain(brand)))
        if brand:
            plain = re.sub(rf"(?<!\w){re.escape(brand)}(?!\w)", " ", plain, count=1)
        rest = _MEASURE.sub(measure, _SIZES.sub(size, plain))
        core = next((part for part in _CUT.split(f" {rest.strip()} ") if part.strip(" .-")), "")
        models, category = [], []
        for word in _words(rest):
            short = _SAME_WORD.get(singular(word), singular(word))
            if short in _COLOURS:
                note("colour", short)
            elif short in _MATERIALS:
                note("material", short)
            elif _is_model(word):
                models.append(squashed(word))
        for word in _words(core):
            short = _SAME_WORD.get(singular(word), singular(word))
            known = short in _COLOURS | _MATERIALS | _EMPTY_WORDS or squashed(word) in models
            if not known and not word[0].isdigit():
                category.append(short)
        if not category:  # a thing named by its material only: "stones"
            category = [singular(word) for word in _words(core) if not word[0].isdigit()][-1:]
        return Read(
            tuple(category), brand, tuple(dict.fromkeys(models)), {kind: tuple(v) for kind, v in attributes.items()}
        )

    def _brand(self, words: list[str], anywhere: bool) -> str:
        for length in (4, 3, 2, 1):
            for start in range(len(words) - length + 1 if anywhere else 1):
                name = " ".join(words[start : start + length])
                if name in self.brands:
                    return name
        return ""


def _is_model(word: str) -> bool:
    """SC-141, lfx25975st; but not 3-bag or 12x24."""
    if re.fullmatch(r"\d+-[a-z]+|\d+(?:x\d+)+|\d+(?:st|nd|rd|th)", word):
        return False
    return _MODEL.fullmatch(word) is not None and len(squashed(word)) >= MIN_MODEL_LETTERS


def singular(word: str) -> str:
    """An English noun without the ending of its plural."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("ses", "xes", "ches", "shes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def squashed(text: str) -> str:
    """Letters and digits alone, lower case."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _plain(text: str) -> str:
    plain = html.unescape(text).lower()
    plain = re.sub(r"(?<=\d)\s*(?:\"|''|”)", " in ", plain)
    plain = re.sub(r"(?<=\d)\s*(?:'|’)(?!\w)", " ft ", plain)
    plain = re.sub(r"\b(sq|cu)\.?\s*(?:ft|feet|foot)\b\.?", r"\1ft", plain)
    return " ".join(plain.split())


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
