"""Numbers from 0 to 999 in words of five languages, and dates in English words. Written out by rule, from no library.

Where a language knows two spellings, one is taken: no "and" in English, "einhundert" in German, hyphens only below one
hundred in French, and "centotto" without its second o in Italian.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date

EN = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
EN_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
DE = (
    "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn siebzehn "
    "achtzehn neunzehn"
).split()
DE_TENS = "zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig".split()
FR = (
    "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize dix-sept dix-huit "
    "dix-neuf"
).split()
FR_TENS = "vingt trente quarante cinquante soixante".split()
ES = (
    "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciséis diecisiete "
    "dieciocho diecinueve veinte veintiuno veintidós veintitrés veinticuatro veinticinco veintiséis veintisiete "
    "veintiocho veintinueve"
).split()
ES_TENS = "treinta cuarenta cincuenta sesenta setenta ochenta noventa".split()
ES_HUNDREDS = (
    "ciento doscientos trescientos cuatrocientos quinientos seiscientos setecientos ochocientos novecientos"
).split()
IT = (
    "zero uno due tre quattro cinque sei sette otto nove dieci undici dodici tredici quattordici quindici sedici "
    "diciassette diciotto diciannove"
).split()
IT_TENS = "venti trenta quaranta cinquanta sessanta settanta ottanta novanta".split()

ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth "
    "sixteenth seventeenth eighteenth nineteenth twentieth twenty-first twenty-second twenty-third twenty-fourth "
    "twenty-fifth twenty-sixth twenty-seventh twenty-eighth twenty-ninth thirtieth thirty-first"
).split()
MONTHS = "january february march april may june july august september october november december".split()
ENGLISH = (*EN, *EN_TENS, *(one for one in ORDINALS if "-" not in one), *MONTHS, "hundred", "thousand", "oh")


def english(n: int) -> str:
    """345 is "three hundred forty-five"."""
    if n < 20:
        return EN[n]
    if n < 100:
        return EN_TENS[n // 10 - 2] + (f"-{EN[n % 10]}" if n % 10 else "")
    return f"{EN[n // 100]} hundred" + (f" {english(n % 100)}" if n % 100 else "")


def german(n: int) -> str:
    """345 is "dreihundertfünfundvierzig"."""
    if n < 20:
        return DE[n]
    if n < 100:
        one = "ein" if n % 10 == 1 else DE[n % 10]
        return (f"{one}und" if n % 10 else "") + DE_TENS[n // 10 - 2]
    hundreds = "ein" if n < 200 else DE[n // 100]
    return f"{hundreds}hundert" + (german(n % 100) if n % 100 else "")


def french(n: int) -> str:
    """345 is "trois cent quarante-cinq"."""
    if n < 20:
        return FR[n]
    if n < 100:
        return _french_tens(n)
    hundreds = "cent" if n < 200 else f"{FR[n // 100]} cent"
    if n % 100:
        return f"{hundreds} {french(n % 100)}"
    return hundreds if n == 100 else f"{hundreds}s"


def _french_tens(n: int) -> str:
    """20 to 99: counted by twenties from 60 on."""
    if n < 60:
        ten, rest = FR_TENS[n // 10 - 2], n % 10
    elif n < 80:
        ten, rest = "soixante", n - 60
    elif n == 80:
        return "quatre-vingts"
    else:
        return f"quatre-vingt-{FR[n - 80]}"
    if rest in (1, 11):
        return f"{ten} et {FR[rest]}"
    return f"{ten}-{FR[rest]}" if rest else ten


def spanish(n: int) -> str:
    """345 is "trescientos cuarenta y cinco"."""
    if n < 30:
        return ES[n]
    if n < 100:
        return ES_TENS[n // 10 - 3] + (f" y {ES[n % 10]}" if n % 10 else "")
    if n == 100:
        return "cien"
    return ES_HUNDREDS[n // 100 - 1] + (f" {spanish(n % 100)}" if n % 100 else "")


def italian(n: int) -> str:
    """345 is "trecentoquarantacinque"."""
    if n < 20:
        return IT[n]
    if n < 100:
        ten, one = IT_TENS[n // 10 - 2], n % 10
        if one == 0:
            return ten
        return (ten[:-1] if one in (1, 8) else ten) + ("tré" if one == 3 else IT[one])
    hundreds = "cento" if n < 200 else f"{IT[n // 100]}cento"
    if n % 100 == 0:
        return hundreds
    rest = "tré" if n % 100 == 3 else italian(n % 100)
    return (hundreds[:-1] if rest.startswith("ott") else hundreds) + rest


LANGUAGES: dict[str, Callable[[int], str]] = {
    "english": english,
    "german": german,
    "french": french,
    "spanish": spanish,
    "italian": italian,
}


def year(n: int) -> str:
    """1900 to 2099: "nineteen hundred", "nineteen oh five", "two thousand twenty-four"."""
    if n >= 2000:
        return "two thousand" + (f" {english(n - 2000)}" if n > 2000 else "")
    rest = n % 100
    return "nineteen " + ("hundred" if rest == 0 else f"oh {EN[rest]}" if rest < 10 else english(rest))


def spoken(day: date) -> str:
    """2024-03-17 is "the seventeenth of march two thousand twenty-four"."""
    return f"the {ORDINALS[day.day - 1]} of {MONTHS[day.month - 1]} {year(day.year)}"


def atoms() -> list[str]:
    """The words that all others are put together from: what the tokenizer has whole."""
    german_parts = [*DE, *DE_TENS, "ein", "und", "hundert"]
    french_parts = [*FR, *FR_TENS, "cent", "cents", "vingts", "et"]
    spanish_parts = [*ES, *ES_TENS, *ES_HUNDREDS, "cien", "y"]
    italian_parts = [*IT, *IT_TENS, *(ten[:-1] for ten in IT_TENS), "tré", "cento", "cent"]
    parts = [*ENGLISH, *german_parts, *french_parts, *spanish_parts, *italian_parts]
    return sorted({piece for part in parts for piece in part.split("-")})
