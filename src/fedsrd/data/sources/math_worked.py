"""Mathematics: word problems with worked answers, generated here from a fixed seed; the group is the template.

Each template draws its numbers and returns question and answer; the numbers in the answer are computed, not written,
so every answer is right by construction. Splitting by template holds out kinds of problems, not only other numbers.
"""

from collections.abc import Callable
from fractions import Fraction
from math import comb, gcd, lcm

import numpy as np

from fedsrd import rng
from fedsrd.data.examples import Example
from fedsrd.packages import Say

EACH = 220
_SEED = 20510

Draw = Callable[[int, int], int]
Template = Callable[[Draw], tuple[str, str, object]]


def load(_: Say) -> list[Example]:
    """`EACH` examples of every template."""
    return [example for template in TEMPLATES for example in generate(template, EACH)]


def generate(template: Template, count: int) -> list[Example]:
    """`count` distinct examples of one template, the same ones everywhere."""
    name = template.__name__.strip("_")
    numbers: np.random.Generator = rng.generator(_SEED, "worked mathematics", name)
    found: dict[str, Example] = {}
    for _ in range(100 * count):
        if len(found) == count:
            return list(found.values())
        question, steps, answer = template(lambda low, high: int(numbers.integers(low, high + 1)))
        found[question] = Example(question, f"{steps}\nAnswer: {answer}", name)
    raise ValueError(f"template {name} has not {count} distinct problems")


def _shopping(draw: Draw) -> tuple[str, str, object]:
    a, p, b, q = draw(2, 15), draw(2, 30), draw(2, 15), draw(2, 30)
    total = a * p + b * q
    return (
        f"A shop sells notebooks at {p} dollars and pens at {q} dollars. What do {a} notebooks and {b} pens cost "
        f"together?",
        f"The notebooks cost {a} * {p} = {a * p} dollars. The pens cost {b} * {q} = {b * q} dollars. "
        f"Together that is {a * p} + {b * q} = {total} dollars.",
        total,
    )


def _percent_off(draw: Draw) -> tuple[str, str, object]:
    price, percent = 20 * draw(2, 60), 5 * draw(1, 15)
    off = price * percent // 100
    return (
        f"A coat costs {price} dollars and is reduced by {percent}%. What is its new price?",
        f"{percent}% of {price} is {price} * {percent} / 100 = {off}. The new price is {price} - {off} = "
        f"{price - off}.",
        price - off,
    )


def _linear(draw: Draw) -> tuple[str, str, object]:
    a, x, b = draw(2, 15), draw(-20, 20), draw(1, 50)
    c = a * x + b
    return (
        f"Solve for x: {a}x + {b} = {c}",
        f"Subtract {b} from both sides: {a}x = {c} - {b} = {c - b}. Divide by {a}: x = {c - b} / {a} = {x}.",
        x,
    )


def _two_sided(draw: Draw) -> tuple[str, str, object]:
    c, more, x, b = draw(1, 9), draw(1, 9), draw(-15, 15), draw(1, 40)
    a = c + more
    d = more * x + b
    return (
        f"Solve for x: {a}x + {b} = {c}x + {d}",
        f"Bring x to the left: {a}x - {c}x = {more}x. Bring numbers to the right: {d} - {b} = {d - b}. "
        f"So {more}x = {d - b} and x = {d - b} / {more} = {x}.",
        x,
    )


def _system(draw: Draw) -> tuple[str, str, object]:
    x, y = draw(-20, 40), draw(-20, 40)
    s, d = x + y, x - y
    return (
        f"Find x and y: x + y = {s} and x - y = {d}",
        f"Add the equations: 2x = {s} + {d} = {s + d}, so x = {x}. Then y = {s} - {x} = {y}.",
        f"x = {x}, y = {y}",
    )


def _speed(draw: Draw) -> tuple[str, str, object]:
    v, t, w, u = 5 * draw(4, 24), draw(1, 8), 5 * draw(4, 24), draw(1, 8)
    return (
        f"A train runs {t} hours at {v} km/h and then {u} hours at {w} km/h. How far does it go?",
        f"The first part is {v} * {t} = {v * t} km, the second {w} * {u} = {w * u} km. "
        f"In all {v * t} + {w * u} = {v * t + w * u} km.",
        f"{v * t + w * u} km",
    )


def _rectangle(draw: Draw) -> tuple[str, str, object]:
    a, b = draw(3, 60), draw(3, 60)
    return (
        f"A rectangle is {a} m long and {b} m wide. What are its area and its perimeter?",
        f"The area is {a} * {b} = {a * b} square metres. The perimeter is 2 * ({a} + {b}) = 2 * {a + b} "
        f"= {2 * (a + b)} m.",
        f"{a * b} square metres and {2 * (a + b)} m",
    )


def _triangle(draw: Draw) -> tuple[str, str, object]:
    a, b = draw(20, 100), draw(20, 75)
    return (
        f"Two angles of a triangle measure {a} and {b} degrees. What is the third angle?",
        f"The angles of a triangle add up to 180 degrees. {a} + {b} = {a + b}, and 180 - {a + b} = {180 - a - b}.",
        f"{180 - a - b} degrees",
    )


def _fractions(draw: Draw) -> tuple[str, str, object]:
    b, d = draw(2, 12), draw(2, 12)
    a, c = draw(1, b), draw(1, d)
    common = lcm(b, d)
    p, q = a * common // b, c * common // d
    total = Fraction(a, b) + Fraction(c, d)
    return (
        f"Add the fractions {a}/{b} and {c}/{d} and simplify.",
        f"The common denominator is {common}: {a}/{b} = {p}/{common} and {c}/{d} = {q}/{common}. "
        f"The sum is {p + q}/{common} = {total}.",
        total,
    )


def _arithmetic_sequence(draw: Draw) -> tuple[str, str, object]:
    a, d, n = draw(1, 30), draw(2, 15), draw(8, 40)
    return (
        f"A sequence starts {a}, {a + d}, {a + 2 * d}, and goes on with equal steps. What is its term number {n}?",
        f"Each step adds {d}. Term {n} is {n} - 1 = {n - 1} steps after the first: {a} + {n - 1} * {d} = "
        f"{a} + {(n - 1) * d} = {a + (n - 1) * d}.",
        a + (n - 1) * d,
    )


def _geometric_sequence(draw: Draw) -> tuple[str, str, object]:
    a, q, n = draw(1, 40), draw(2, 5), draw(4, 7)
    return (
        f"A sequence starts {a}, {a * q}, {a * q * q}, and each term is a fixed multiple of the one before. What is "
        f"term {n}?",
        f"Each term is {q} times the one before. Term {n} is {a} * {q}^{n - 1} = {a} * {q ** (n - 1)} "
        f"= {a * q ** (n - 1)}.",
        a * q ** (n - 1),
    )


def _simple_interest(draw: Draw) -> tuple[str, str, object]:
    capital, rate, years = 100 * draw(2, 90), draw(2, 9), draw(2, 10)
    interest = capital * rate * years // 100
    return (
        f"{capital} dollars earn {rate}% simple interest a year. How much is there after {years} years?",
        f"A year brings {capital} * {rate} / 100 = {capital * rate // 100} dollars, {years} years bring {interest} "
        f"dollars. "
        f"Together {capital} + {interest} = {capital + interest}.",
        f"{capital + interest} dollars",
    )


def _average(draw: Draw) -> tuple[str, str, object]:
    a, b, c, mean = draw(1, 60), draw(1, 60), draw(1, 60), draw(20, 60)
    d = 4 * mean - a - b - c
    return (
        f"What is the average of {a}, {b}, {c} and {d}?",
        f"The sum is {a} + {b} + {c} + {d} = {4 * mean}. Divided by 4 that is {mean}.",
        mean,
    )


def _ratio(draw: Draw) -> tuple[str, str, object]:
    a, b, part = draw(1, 9), draw(1, 9), draw(3, 40)
    total = (a + b) * part
    return (
        f"Share {total} marbles between two children in the ratio {a} to {b}. How many does each get?",
        f"There are {a} + {b} = {a + b} parts, so one part is {total} / {a + b} = {part}. "
        f"The first gets {a} * {part} = {a * part}, the second {b} * {part} = {b * part}.",
        f"{a * part} and {b * part}",
    )


def _work(draw: Draw) -> tuple[str, str, object]:
    a, b = draw(2, 20), draw(2, 20)
    together = 1 / (Fraction(1, a) + Fraction(1, b))
    return (
        f"One pump fills a tank in {a} hours, another in {b} hours. How long do both take together?",
        f"In an hour they fill 1/{a} + 1/{b} = {a + b}/{a * b} of the tank. "
        f"The tank takes {a * b}/{a + b} = {together} hours.",
        f"{together} hours",
    )


def _remainder(draw: Draw) -> tuple[str, str, object]:
    n, d = draw(100, 2000), draw(6, 40)
    return (
        f"{n} eggs are packed into boxes of {d}. How many boxes are full and how many eggs are left?",
        f"{n} / {d} is {n // d} with remainder, for {n // d} * {d} = {n // d * d} and {n} - {n // d * d} = {n % d}.",
        f"{n // d} boxes, {n % d} eggs left",
    )


def _greatest_divisor(draw: Draw) -> tuple[str, str, object]:
    shared = draw(2, 20)
    a, b = shared * draw(2, 25), shared * draw(2, 25)
    steps, x, y = [], max(a, b), min(a, b)
    while y:
        steps.append(f"{x} = {x // y} * {y} + {x % y}")
        x, y = y, x % y
    return (
        f"What is the greatest common divisor of {a} and {b}?",
        f"By Euclid's algorithm: {'; '.join(steps)}. The last divisor is {gcd(a, b)}.",
        gcd(a, b),
    )


def _combinations(draw: Draw) -> tuple[str, str, object]:
    n, k, what = draw(5, 80), draw(2, 3), draw(0, 3)
    people = ("students", "players", "nurses", "clerks")[what]
    top = " * ".join(str(n - i) for i in range(k))
    bottom = " * ".join(str(k - i) for i in range(k))
    return (
        f"In how many ways can {k} of {n} {people} be chosen?",
        f"The order does not matter: ({top}) / ({bottom}) = {comb(n, k)}.",
        comb(n, k),
    )


def _ages(draw: Draw) -> tuple[str, str, object]:
    child, times, years = draw(2, 18), draw(2, 6), draw(2, 15)
    parent = child * times
    return (
        f"A parent is {times} times as old as the child, who is {child}. How old are both together in {years} years?",
        f"The parent is {times} * {child} = {parent}. Together they are {child} + {parent} = {child + parent} now. "
        f"In {years} years both are older, by 2 * {years} = {2 * years}: {child + parent} + {2 * years} = "
        f"{child + parent + 2 * years}.",
        child + parent + 2 * years,
    )


def _quadratic(draw: Draw) -> tuple[str, str, object]:
    p, q = draw(1, 25), draw(1, 25)
    low, high = sorted((p, q))
    return (
        f"Solve x^2 - {p + q}x + {p * q} = 0",
        f"Two numbers with sum {p + q} and product {p * q} are {low} and {high}, so the left side is (x - {low})(x - "
        f"{high}).",
        f"x = {low} or x = {high}" if low != high else f"x = {low}",
    )


TEMPLATES: tuple[Template, ...] = (
    _shopping,
    _percent_off,
    _linear,
    _two_sided,
    _system,
    _speed,
    _rectangle,
    _triangle,
    _fractions,
    _arithmetic_sequence,
    _geometric_sequence,
    _simple_interest,
    _average,
    _ratio,
    _work,
    _remainder,
    _greatest_divisor,
    _combinations,
    _ages,
    _quadratic,
)
