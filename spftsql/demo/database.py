"""The demo's database: an invented retail chain, generated from a seed.

Ten tables, about 15,000 rows: a catalogue (category, supplier, product, and tags through a bridge table),
shops and their staff (with a self-reference), customers, purchases over three years and their lines.
Customers, products and cities are Zipf-distributed, sales follow the seasons and grow from year to year, and
columns that are empty in a real shop (an e-mail that was never given, a purchase not yet shipped) are NULL
for some rows.

Prices are multiples of 0.25, so that sums are exact whatever the order of addition. Prices, salaries and the
dates that one would rank by are distinct, so that "the cheapest", "the newest" and the like have one answer.
"""

from __future__ import annotations

import os
import random
import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml

DATABASE_NAME = "shop"

T = TypeVar("T")
Row = tuple[Any, ...]

PRODUCTS, SUPPLIERS, CUSTOMERS, PURCHASES = 320, 26, 900, 4200
FIRST_DAY, LAST_DAY = date(2022, 1, 1), date(2024, 12, 31)  # of sales
# Sales by month, January first: a quiet start of the year, spring for the garden, Christmas for everything.
_SEASON = (0.6, 0.6, 0.8, 1.0, 1.1, 1.0, 0.8, 0.7, 0.9, 1.0, 1.6, 2.1)
_DEPARTMENT_SEASON = {
    "garden": (0.2, 0.4, 1.5, 2.5, 2.5, 2.0, 1.5, 1.0, 0.7, 0.5, 0.3, 0.2),
    "outdoor": (0.4, 0.4, 0.8, 1.2, 1.8, 2.2, 2.2, 1.8, 1.0, 0.6, 0.4, 0.6),
}
_PRICE_LEVEL = {"furniture": 180, "grills": 150, "camping": 110, "hiking": 70, "cutlery": 15, "tableware": 15}


@dataclass
class _Shop:
    """The tables under construction, and the word lists and random numbers that fill them."""

    rng: random.Random
    words: dict[str, Any]
    rows: defaultdict[str, list[Row]] = field(default_factory=lambda: defaultdict(list))

    def days(self, count: int, first: date, last: date) -> list[str]:
        """`count` different days, in random order, as ISO text."""
        span = (last - first).days + 1
        return [(first + timedelta(days=day)).isoformat() for day in self.rng.sample(range(span), count)]

    def sometimes(self, probability: float, value: T) -> T | None:
        """`value` with this probability, NULL otherwise."""
        return value if self.rng.random() < probability else None


def build_database(path: Path, seed: int = 0) -> None:
    """Writes the demo's SQLite file to `path`, replacing what is there; the same seed gives the same bytes.

    Takes about half a second and under 1 MB. The file appears under its name only when it is complete.
    """
    data = resources.files(__package__)
    words = yaml.safe_load(data.joinpath("words.yaml").read_text(encoding="utf-8"))
    shop = _Shop(random.Random(seed), words)
    for fill in (_catalogue, _tags, _stores, _customers, _sales):
        fill(shop)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    connection = sqlite3.connect(temporary)
    try:
        connection.executescript(data.joinpath("schema.sql").read_text(encoding="utf-8"))
        for table, rows in shop.rows.items():
            marks = ", ".join("?" * len(rows[0]))
            connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
        connection.commit()
    finally:
        connection.close()
    temporary.replace(path)


def _zipf(count: int, exponent: float = 1.0) -> list[float]:
    """Weights of a Zipf law: the first of `count` things is the most frequent."""
    return [1.0 / rank**exponent for rank in range(1, count + 1)]


def _people(shop: _Shop, count: int) -> list[str]:
    """`count` different full names, different from those given to anyone before."""
    taken = {row[1] for table in ("employee", "customer") for row in shop.rows[table]}
    pairs = [f"{first} {last}" for first in shop.words["first_names"] for last in shop.words["last_names"]]
    return shop.rng.sample([pair for pair in pairs if pair not in taken], count)


def _catalogue(shop: _Shop) -> None:
    rng, words = shop.rng, shop.words
    kinds: list[tuple[int, str, str]] = []
    for department, categories in words["categories"].items():
        for category, nouns in categories.items():
            category_id = len(shop.rows["category"]) + 1
            shop.rows["category"].append((category_id, category, department))
            kinds += [(category_id, category, noun) for noun in nouns]

    parts = words["supplier_words"]
    names = rng.sample([f"{one} {two}" for one in parts["first"] for two in parts["second"]], SUPPLIERS)
    countries = rng.choices(words["countries"], _zipf(len(words["countries"]), 0.7), k=SUPPLIERS)
    since = shop.days(SUPPLIERS, date(2012, 1, 1), date(2023, 6, 30))
    for number, name in enumerate(names):
        rating = shop.sometimes(0.8, rng.randrange(8, 21) / 4)
        shop.rows["supplier"].append((number + 1, name, countries[number], rating, since[number]))

    titles = rng.sample([(line, kind) for line in words["product_lines"] for kind in kinds], PRODUCTS)
    launched = shop.days(PRODUCTS, date(2019, 1, 1), date(2024, 9, 30))
    stocks = rng.sample(range(1, 900), PRODUCTS)
    prices: set[float] = set()
    # The last three suppliers are under contract but have delivered nothing yet.
    supplier_weights = _zipf(SUPPLIERS - 3, 0.6)
    for number, (line, (category_id, category, noun)) in enumerate(titles):
        price = round(_PRICE_LEVEL.get(category, 40) * (0.4 + 1.8 * rng.random()) * 4) / 4
        while price in prices:
            price += 0.25
        prices.add(price)
        shop.rows["product"].append(
            (
                number + 1,
                f"{line} {noun}",
                rng.choices(words["brands"], _zipf(len(words["brands"]), 0.7))[0],
                shop.sometimes(0.85, rng.choices(words["colors"], _zipf(len(words["colors"]), 0.6))[0]),
                price,
                stocks[number] if rng.random() < 0.94 else 0,
                launched[number],
                shop.sometimes(0.1, (date.fromisoformat(launched[number]) + timedelta(days=500)).isoformat()),
                category_id,
                rng.choices(range(1, SUPPLIERS - 2), supplier_weights)[0],
            )
        )


def _tags(shop: _Shop) -> None:
    names: list[str] = shop.words["tags"]
    shop.rows["tag"] = [(number, name) for number, name in enumerate(names, start=1)]
    weights = _zipf(len(names), 0.8)
    for product in shop.rows["product"]:
        count = shop.rng.choices((0, 1, 2, 3, 4), (15, 30, 30, 15, 10))[0]
        chosen = set(shop.rng.choices(range(1, len(names) + 1), weights, k=count))
        shop.rows["product_tag"] += [(product[0], tag_id) for tag_id in sorted(chosen)]


def _stores(shop: _Shop) -> None:
    rng, words = shop.rng, shop.words
    opened = shop.days(len(words["stores"]), date(2008, 1, 1), date(2021, 12, 31))
    areas = rng.sample(range(300, 2600, 20), len(words["stores"]))
    # Eleven stores in eight of the sixteen cities: the three biggest cities have two each.
    cities = words["cities"][:8] + words["cities"][:3]
    for number, name in enumerate(words["stores"]):
        shop.rows["store"].append((number + 1, name, cities[number], areas[number], opened[number]))
    shop.rows["store"].append((len(shop.rows["store"]) + 1, "Web Shop", None, None, "2015-03-01"))

    sizes = [rng.randrange(6, 11) for _ in shop.rows["store"]]
    names = iter(_people(shop, sum(sizes)))
    hired = iter(shop.days(sum(sizes), date(2009, 1, 1), date(2024, 10, 31)))
    salaries: set[int] = set()
    roles = [role for role in words["roles"] if role != "manager"]
    shares = [words["roles"][role][0] for role in roles]
    for store, size in zip(shop.rows["store"], sizes, strict=True):
        manager_id = len(shop.rows["employee"]) + 1
        for place in range(size):
            role = "manager" if place == 0 else rng.choices(roles, shares)[0]
            _, lowest, highest = words["roles"][role]
            salary = rng.randrange(lowest, highest, 10)
            while salary in salaries:
                salary += 10
            salaries.add(salary)
            start = next(hired)
            end = (date.fromisoformat(start) + timedelta(days=rng.randrange(200, 1500))).isoformat()
            shop.rows["employee"].append(
                (
                    len(shop.rows["employee"]) + 1,
                    next(names),
                    role,
                    salary,
                    start,
                    shop.sometimes(0.2, end) if place and end <= LAST_DAY.isoformat() else None,
                    store[0],
                    manager_id if place else None,
                )
            )


def _customers(shop: _Shop) -> None:
    rng, cities = shop.rng, shop.words["cities"]
    joined = sorted(shop.days(CUSTOMERS, date(2020, 1, 1), date(2024, 11, 30)))
    for number, name in enumerate(_people(shop, CUSTOMERS)):
        first, last = name.lower().split()
        shop.rows["customer"].append(
            (
                number + 1,
                name,
                rng.choices(cities, _zipf(len(cities), 0.9))[0],
                shop.sometimes(0.85, f"{first}.{last}@example.com"),
                shop.sometimes(0.9, rng.randrange(1945, 2006)),
                rng.choices(("basic", "silver", "gold"), (70, 22, 8))[0],
                joined[number],
            )
        )


def _sales(shop: _Shop) -> None:
    rng = shop.rng
    calendar = [FIRST_DAY + timedelta(days=day) for day in range((LAST_DAY - FIRST_DAY).days + 1)]
    busy = [_SEASON[day.month - 1] * (1 + 0.25 * (day.year - FIRST_DAY.year)) for day in calendar]
    buyers = [row for row in shop.rows["customer"] if rng.random() > 0.1]  # the others signed up and never bought
    rng.shuffle(buyers)
    buyer_weights = _zipf(len(buyers), 0.6)
    basket = _Basket(shop)
    for number, day in enumerate(sorted(rng.choices(calendar, busy, k=PURCHASES)), start=1):
        ordered = day.isoformat()
        customer = next(row for row in _draws(rng, buyers, buyer_weights) if row[6] <= ordered)
        store = _store_for(shop, customer[2])
        web = store[2] is None
        pending = (LAST_DAY - day).days < 21 and rng.random() < 0.5
        status = "pending" if pending else rng.choices(("delivered", "returned", "cancelled"), (88, 7, 5))[0]
        delay = timedelta(days=rng.randrange(1, 7) if web else 0)
        staff = [
            row[0]
            for row in shop.rows["employee"]
            if row[6] == store[0] and row[4] <= ordered and (row[5] is None or row[5] >= ordered)
        ]
        shop.rows["purchase"].append(
            (
                number,
                ordered,
                None if status in ("pending", "cancelled") else (day + delay).isoformat(),
                status,
                rng.choices(("card", "invoice", "voucher", "cash"), (60, 15, 8, 0 if web else 30))[0],
                customer[0],
                store[0],
                None if web or not staff else rng.choice(staff),
            )
        )
        shop.rows["order_line"] += basket.lines(number, day)


def _draws(rng: random.Random, things: Sequence[T], weights: Sequence[float]) -> Any:
    """An endless stream of weighted draws, for drawing until one fits."""
    while True:
        yield from rng.choices(things, weights, k=4)


def _store_for(shop: _Shop, city: str) -> Row:
    """Where a customer of `city` buys: on the web, in town, or while travelling."""
    stores = shop.rows["store"]
    local = [store for store in stores if store[2] == city]
    if shop.rng.random() < 0.4:
        return stores[-1]
    if local and shop.rng.random() < 0.8:
        return shop.rng.choice(local)
    return shop.rng.choices(stores[:-1], _zipf(len(stores) - 1, 0.5))[0]


class _Basket:
    """Draws what is bought: popular products more often, garden and outdoor goods in their season."""

    def __init__(self, shop: _Shop) -> None:
        self.rng = shop.rng
        sellers = [row for row in shop.rows["product"] if shop.rng.random() > 0.06]  # the others never sell
        self.products = shop.rng.sample(sellers, len(sellers))
        popularity = _zipf(len(self.products), 0.8)
        departments = {row[0]: row[2] for row in shop.rows["category"]}
        self.weights = [
            [
                weight * _DEPARTMENT_SEASON.get(departments[row[8]], (1.0,) * 12)[month]
                for row, weight in zip(self.products, popularity, strict=True)
            ]
            for month in range(12)
        ]

    def lines(self, purchase_id: int, day: date) -> list[Row]:
        """The lines of one purchase: 1 to 5 different products that were on sale that day."""
        count = self.rng.choices((1, 2, 3, 4, 5), (40, 28, 17, 10, 5))[0]
        ordered = day.isoformat()
        chosen: dict[int, Row] = {}
        for row in _draws(self.rng, self.products, self.weights[day.month - 1]):
            if len(chosen) == count:
                break
            if row[6] <= ordered and (row[7] is None or row[7] >= ordered):
                chosen[row[0]] = row
        lines = []
        for line, row in enumerate(chosen.values(), start=1):
            quantity = self.rng.choices((1, 2, 3, 4, 6, 12), (60, 20, 8, 6, 4, 2))[0]
            price = row[4] if self.rng.random() < 0.8 else round(row[4] * 0.85 * 4) / 4
            lines.append((purchase_id, line, row[0], quantity, price))
        return lines
