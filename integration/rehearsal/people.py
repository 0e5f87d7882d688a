"""The people of a rehearsal: names in several scripts, all of our own writing, drawn from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from random import Random

from common.names import NameGroup, PersonName


@dataclass(frozen=True, slots=True)
class Person:
    """A patient as the HIS knows it. `number` is the Patient ID, `charset` the MSH-18 its messages are sent in."""

    number: str
    name: PersonName
    birth_date: str
    sex: str
    charset: str
    city: str


# (MSH-18, family names, female given names, male given names, cities); a name is family^given of one row.
_LATIN = (
    (
        "8859/1",
        ("Müller", "Schäfer", "Weiß", "Krüger", "Lindqvist", "Bjørnstad", "Mäkelä", "Ó Briain"),
        ("Jördis", "Änne", "Maëlle", "Solveig", "Aoife", "Kirsti"),
        ("Jürgen", "Søren", "Loïc", "Håkon", "Björn", "Pádraig"),
        ("Göttingen", "Malmö", "Tromsø", "Galway"),
    ),
    (
        "8859/1",
        ("García Núñez", "Peña", "Gonçalves", "Araújo", "Lefèvre", "d'Été-Roux", "Muñoz", "Bonnafé"),
        ("Inés", "Conceição", "Zoé", "Begoña", "Thérèse", "Lúcia"),
        ("Íñigo", "João", "Benoît", "Andrés", "René", "Tomás"),
        ("Logroño", "Évora", "Besançon", "Vigo"),
    ),
    (
        "UNICODE UTF-8",
        ("Wiśniewski", "Dvořák", "Šimunić", "Kovačević", "Žukauskas", "Çelik", "Yıldırım", "Nguyễn"),
        ("Łucja", "Božena", "Željka", "Gülşen", "Rūta", "Thị Hạnh"),
        ("Stanisław", "Jiří", "Žarko", "Oğuz", "Ąžuolas", "Văn Đức"),
        ("Łódź", "Plzeň", "Čakovec", "Huế"),
    ),
    (
        "",
        ("Okafor", "Haddad", "Fernando", "Whitcombe", "Mbeki", "Larsen", "Tanaka-Reed", "O'Hara"),
        ("Amara", "Leila", "Nadeesha", "Harriet", "Thandi", "Ingrid"),
        ("Chidi", "Karim", "Ruwan", "Edmund", "Sipho", "Anders"),
        ("Enugu", "Tripoli", "Galle", "Bath"),
    ),
)
_GREEK = (
    "8859/7",
    ("Παπαδάκης", "Καραγιάννη", "Οικονόμου", "Βλάχος", "Ζαφειρίου"),
    ("Ελένη", "Καλλιόπη", "Δήμητρα", "Αγγελική"),
    ("Γιώργος", "Σταύρος", "Θανάσης", "Μιχάλης"),
    ("Ιωάννινα", "Χανιά", "Βόλος"),
)
_CYRILLIC = (
    "8859/5",
    ("Ковалёв", "Щербакова", "Тимошенко", "Богданов", "Юрьева"),
    ("Алёна", "Людмила", "Жанна", "Надежда"),
    ("Фёдор", "Юрий", "Тарас", "Вячеслав"),
    ("Пловдив", "Смоленск", "Суботица"),
)
# Japanese names in three groups: romanised, ideographic, phonetic.
_JAPANESE_FAMILY = (
    ("Kobayashi", "小林", "こばやし"),
    ("Ishikawa", "石川", "いしかわ"),
    ("Matsumoto", "松本", "まつもと"),
    ("Inoue", "井上", "いのうえ"),
)
_JAPANESE_GIVEN = {
    "F": (("Yuko", "裕子", "ゆうこ"), ("Naomi", "直美", "なおみ"), ("Haruka", "遥", "はるか")),
    "M": (("Kenji", "健二", "けんじ"), ("Takashi", "隆", "たかし"), ("Makoto", "誠", "まこと")),
}
_JAPANESE_CITIES = ("Sendai", "Matsue", "Nagano")


def draw_people(rng: Random, prefix: str, today: date) -> Iterator[Person]:
    """People without end; no name comes twice before every one was there. `prefix` begins each Patient ID.

    Every eighth has a Greek, every eighth a Cyrillic, every eighth a Japanese name; the others Latin ones.
    """
    used: set[str] = set()
    number = 0
    while True:
        number += 1
        sex = rng.choice("FM")
        name, charset, city = _draw_name(rng, number, sex)
        for _ in range(40):
            if str(name) not in used:
                break
            name, charset, city = _draw_name(rng, number, sex)
        used.add(str(name))
        yield Person(f"{prefix}{number:04d}", name, _birth_date(rng, today), sex, charset, city)


def _draw_name(rng: Random, number: int, sex: str) -> tuple[PersonName, str, str]:
    if number % 8 == 3:
        return _draw_japanese(rng, sex)
    row = _GREEK if number % 8 == 5 else _CYRILLIC if number % 8 == 7 else rng.choice(_LATIN)
    charset, families, female, male, cities = row
    given = rng.choice(female if sex == "F" else male)
    return PersonName(NameGroup(rng.choice(families), given)), charset, rng.choice(cities)


def _draw_japanese(rng: Random, sex: str) -> tuple[PersonName, str, str]:
    family, given = rng.choice(_JAPANESE_FAMILY), rng.choice(_JAPANESE_GIVEN[sex])
    groups = [NameGroup(family[group], given[group]) for group in range(3)]
    return PersonName(*groups), "UNICODE UTF-8", rng.choice(_JAPANESE_CITIES)


def _birth_date(rng: Random, today: date) -> str:
    days = rng.randrange(1 * 365, 92 * 365)
    return (today - timedelta(days=days)).strftime("%Y%m%d")


PHYSICIANS = (
    ("RHP101", PersonName(NameGroup("Abendroth", "Clara", "", "Dr."))),
    ("RHP102", PersonName(NameGroup("Sørlie", "Einar"))),
    ("RHP103", PersonName(NameGroup("Castaño", "Elvira"))),
    ("RHP104", PersonName(NameGroup("Farrugia", "Noel"))),
)
"""Who orders: number and name."""
