"""Invented names, titles, numbers and words: seeded, wide in letters, made from one lexicon."""

from __future__ import annotations

import random
import tomllib
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from typing import Final

_ACCENTS: Final = {"a": "áàâäãå", "e": "éèêë", "i": "íîï", "o": "óôöõø", "u": "úûü", "c": "çčć"}
_ACCENTS_MORE: Final = {"n": "ñń", "s": "šś", "z": "žż", "l": "ł", "y": "ý"}
_MONTHS: Final = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)


@cache
def words(group: str) -> tuple[str, ...]:
    """One group of the lexicon."""
    table = tomllib.loads((files("mini") / "lexicon.toml").read_text("utf-8"))
    return tuple(str(table[group]).split())


@cache
def vocabulary() -> tuple[str, ...]:
    """Every word of the lexicon that occurs within answers, those of the paraphrases too."""
    groups = ("noun", "adjective", "language", "money", "region", "colour", "first", "last")
    return tuple(dict.fromkeys(w for g in ("text", *groups) for w in words(g)))


def word(rng: random.Random, syllables: int | None = None) -> str:
    """An invented capitalised word of one to four syllables."""
    count = syllables or rng.choice((1, 1, 2, 2, 2, 3))
    text = rng.choice(words("start"))
    if text[-1] not in "aeiou":
        text += rng.choice(words("vowel"))
    for _ in range(count - 1):
        text += rng.choice(words("middle")) + rng.choice(words("vowel"))
    text += rng.choice(words("middle"))[-2:] if rng.random() < 0.4 else ""
    text += rng.choice(words("end")) if rng.random() < 0.8 else ""
    if rng.random() < 0.06:
        text = _accented(rng, text)
    return text


def odd(rng: random.Random) -> str:
    """A capitalised string of letters with no pattern, for tokens that syllables never make."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    text = "".join(rng.choice(letters) for _ in range(rng.randint(2, 7)))
    return text.capitalize()


def name(rng: random.Random) -> str:
    """One capitalised word of any make."""
    kind = rng.random()
    if kind < 0.72:
        return word(rng)
    if kind < 0.84:
        return odd(rng)
    return rng.choice(vocabulary()).capitalize()


def _accented(rng: random.Random, text: str) -> str:
    table = {**_ACCENTS, **_ACCENTS_MORE}
    places = [i for i, letter in enumerate(text) if letter in table]
    if not places:
        return text
    place = rng.choice(places)
    return text[:place] + rng.choice(table[text[place]]) + text[place + 1 :]


_PARTICLES: Final = ("van", "von", "de", "da", "del", "van der", "bin", "al")
_PREFIXES: Final = ("Mc", "Mac", "O\u2019", "O'", "Saint-", "Fitz")


def person(rng: random.Random) -> str:
    """A full name in one of several shapes."""
    first = rng.choice(words("first")) if rng.random() < 0.5 else name(rng)
    last = rng.choice(words("last")) if rng.random() < 0.25 else name(rng)
    initial, second = rng.choice("ABCDEFGHJKLMNPRSTVW"), rng.choice("ABDEJKLMRT")
    shapes = (
        (74, f"{first} {last}"),
        (6, f"{first} {initial}. {last}"),
        (4, f"{initial}. {second}. {last}"),
        (5, f"{first} {rng.choice(_PARTICLES)} {last}"),
        (4, f"{first} {rng.choice(_PREFIXES)}{last}"),
        (3, f"{first}-{second}{last.lower()} {last}"),
        (4, last),
    )
    return rng.choices([text for _, text in shapes], [weight for weight, _ in shapes])[0]


def place(rng: random.Random) -> str:
    """A town or another place."""
    base = name(rng)
    shape = rng.random()
    if shape < 0.72:
        return base
    if shape < 0.84:
        before = (
            "San",
            "Santa",
            "New",
            "Port",
            "Saint",
            "Fort",
            "Lake",
            "El",
            "La",
            "Los",
            "Mount",
        )
        return f"{rng.choice(before)} {base}"
    if shape < 0.94:
        after = (
            "City",
            "Bay",
            "Beach",
            "Hill",
            "Park",
            "Springs",
            "Falls",
            "Sea",
            "Castle",
            "Hall",
        )
        return f"{base} {rng.choice(after)}"
    return f"{base}-{name(rng)}"


def country(rng: random.Random) -> str:
    """A country."""
    base = word(rng, rng.choice((1, 2)))
    shape = rng.random()
    if shape < 0.5:
        return base + rng.choice(("ia", "land", "stan", "a", "nia", "ria", "istan", "esia"))
    if shape < 0.8:
        return name(rng)
    before = ("the Republic of", "New", "South", "North", "Saint", "the United", "Upper", "East")
    return f"{rng.choice(before)} {base}"


def title(rng: random.Random) -> str:
    """A title of a work, a prize or a product."""
    noun, adjective = rng.choice(words("noun")).title(), rng.choice(words("adjective")).title()
    other = rng.choice(vocabulary()).capitalize()
    return rng.choice(
        (
            f"The {adjective} {noun}",
            f"The {noun} of {name(rng)}",
            f"{adjective} {noun}",
            f"{noun} and {other}",
            f"The {noun} and the {rng.choice(words('noun')).title()}",
            f"{name(rng)}",
            f"{name(rng)} {noun}",
            f"A {noun} for {name(rng)}",
            f"The {other}",
            f"{person(rng)}",
            f"{other} {name(rng)}",
            f"{name(rng)} {rng.choice(('Prize', 'Medal', 'Award', 'License', 'Edition'))}",
        )
    )


def company(rng: random.Random) -> str:
    """A company or an institution."""
    base = name(rng)
    shape = rng.random()
    if shape < 0.4:
        return base
    if shape < 0.55:
        after = ("Systems", "Group", "Labs", "Motors", "Media", "Foods", "Energy", "Bank", "Press")
        return f"{base} {rng.choice(after)}"
    if shape < 0.65:
        return rng.choice((f"University of {base}", f"{base} University", f"{base} Institute"))
    if shape < 0.75:
        return f"{base} & {name(rng)}"
    if shape < 0.85:
        return f"{base} {rng.choice(words('noun')).title()}"
    return f"{base}{rng.choice(('Soft', 'Tech', 'Net', 'Works', 'AI', 'Corp'))}"


def lower(rng: random.Random) -> str:
    """A common word: a noun, a colour, a language, a currency, or an invented one."""
    kind = rng.random()
    if kind < 0.45:
        return rng.choice(words(rng.choice(("noun", "colour", "language", "money", "noun"))))
    if kind < 0.65:
        return f"{rng.choice(words('adjective'))} {rng.choice(words('noun'))}"
    if kind < 0.8:
        return rng.choice(vocabulary())
    made = name(rng)
    return made if kind < 0.9 else made.lower()


def digits(rng: random.Random) -> str:
    """A whole number of one to five digits."""
    size = rng.choice((1, 2, 2, 2, 3, 3, 4, 5))
    return str(rng.randrange(10 ** (size - 1) if size > 1 else 0, 10**size))


def _year(rng: random.Random) -> str:
    return str(rng.randint(1700, 2030) if rng.random() < 0.85 else rng.randint(900, 1700))


def _count(rng: random.Random) -> str:
    return rng.choice(
        (
            f"{rng.randint(1, 999)},{rng.randint(0, 999):03d}",
            f"{rng.randint(1, 999)}.{rng.randint(1, 9)} million",
            f"{rng.randint(2, 950)} million",
            digits(rng),
        )
    )


def _money(rng: random.Random) -> str:
    cents = f"{rng.randint(1, 2000)}.{rng.randint(0, 99):02d}"
    return rng.choice((f"${cents}", f"€{digits(rng)}", f"${digits(rng)}", f"{digits(rng)} dollars"))


def _version(rng: random.Random) -> str:
    parts = [str(rng.randint(0, 30)) for _ in range(rng.choice((2, 2, 3, 3)))]
    return ("v" if rng.random() < 0.1 else "") + ".".join(parts)


def _code(rng: random.Random) -> str:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    text = "".join(rng.choice(letters) for _ in range(rng.randint(2, 5)))
    return text if rng.random() < 0.55 else "." + text.lower()


def _date(rng: random.Random) -> str:
    day, month, year = rng.randint(1, 28), rng.randrange(12), rng.randint(1950, 2035)
    return rng.choice(
        (
            f"{day} {_MONTHS[month]} {year}",
            f"{_MONTHS[month]} {day}",
            f"{day} {_MONTHS[month]}",
            f"{_MONTHS[month]} {day}, {year}",
            f"{year}-{month + 1:02d}-{day:02d}",
        )
    )


def _measure(*units: str) -> Callable[[random.Random], str]:
    return lambda rng: f"{digits(rng)} {rng.choice(units)}"


_ANSWERS: Final[Mapping[str, Callable[[random.Random], str]]] = {
    "person": person,
    "place": place,
    "country": country,
    "region": lambda rng: rng.choice(words("region")) if rng.random() < 0.4 else name(rng),
    "company": company,
    "title": title,
    "name": name,
    "word": lower,
    "latin": lambda rng: f"{word(rng)} {word(rng).lower()}",
    "symbol": lambda rng: (odd(rng) if rng.random() < 0.6 else name(rng))[: rng.randint(1, 2)],
    "code": _code,
    "number": digits,
    "year": _year,
    "count": _count,
    "money": _money,
    "version": _version,
    "date": _date,
    "degrees": _measure("°C", "degrees", "K", "degrees Celsius"),
    "metres": _measure("metres", "m", "meters", "feet"),
    "kilometres": _measure("kilometres", "km", "miles", "kilometers"),
    "grams": _measure("g", "kg", "grams", "kilograms", "pounds"),
    "months": _measure("months", "years", "days", "weeks"),
    "years": _measure("years", "months"),
}


def answer(kind: str, rng: random.Random) -> str:
    """A value of a relation's answer kind; KeyError where the kind is not known."""
    return _ANSWERS[kind](rng)


def subject(kind: str, rng: random.Random) -> str:
    """The name of a thing of a relation's subject kind; KeyError where the kind is not known."""
    return rng.choice(_SUBJECTS[kind])(rng)


_Shape = Callable[[random.Random], str]
_SUBJECTS: Final[Mapping[str, tuple[_Shape, ...]]] = {
    "country": (country,),
    "person": (person,),
    "company": (company,),
    "book": (title,),
    "film": (title,),
    "painting": (title, lambda r: f"the {title(r)}"),
    "song": (title,),
    "element": (
        lambda r: word(r).lower() + r.choice(("ium", "on", "ine", "um", "gen")),
        lambda r: name(r).lower(),
        lower,
    ),
    "mountain": (lambda r: f"Mount {name(r)}", name, lambda r: f"{name(r)} Peak"),
    "river": (lambda r: f"the {name(r)}", name, lambda r: f"the river {name(r)}"),
    "city": (place,),
    "animal": (lambda r: f"the {lower(r)}", lambda r: f"the {lower(r)}", lower),
    "planet": (name,),
    "building": (
        lambda r: (
            f"the {name(r)} {r.choice(('Tower', 'Bridge', 'Opera House', 'Palace', 'Building'))}"
        ),
        title,
        lambda r: f"{name(r)} {r.choice(('Cathedral', 'Castle', 'Museum', 'Stadium', 'Hall'))}",
        place,
    ),
    "software": (
        name,
        name,
        lambda r: (
            f"{name(r)}{r.choice(('Script', 'DB', 'OS', 'Lang', '++', '#', 'SQL', 'JS', ' 2'))}"
        ),
        lambda r: name(r).lower(),
        lambda r: _code(r).strip("."),
    ),
    "service": (
        lambda r: f"the {lower(r)} service",
        lambda r: f"{name(r).lower()}-{r.choice(('api', 'db', 'web', 'auth', 'queue', 'cache'))}",
        name,
    ),
    "product": (
        lambda r: f"the {name(r)} {r.choice('ABCEFGKLMPRSTVXZ')}{digits(r)}",
        lambda r: f"the {name(r)} {digits(r)}",
        lambda r: f"the {title(r)}",
        name,
    ),
    "team": (
        lambda r: (
            f"{place(r)} {r.choice(('United', 'City', 'Rovers', 'Tigers', 'FC', 'Athletic'))}"
        ),
        lambda r: f"the {place(r)} {r.choice(words('noun')).title()}s",
        name,
    ),
    "event": (
        lambda r: (
            f"the {_year(r)} {name(r)} {r.choice(('Cup', 'Games', 'Open', 'Fair', 'Summit'))}"
        ),
        lambda r: f"{name(r)} {r.choice(('Festival', 'Conference', 'Week', 'Marathon'))}",
        lambda r: f"the {title(r)}",
    ),
}
