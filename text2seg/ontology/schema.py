"""What one category of an ontology file may say, checked by pydantic. The description of a key says what is right."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from text2seg.errors import QueryError
from text2seg.ontology.categories import SUPERCATEGORY, did_you_mean
from text2seg.queries import cleaned, names_in, parse_query

_TEXT = "a text that is not empty (in quotes where YAML takes it for a number or true)"
_SHOWN = 40  # so much of a wrong value is repeated


def _one_line(text: str) -> str:
    """Text without its outer space and signs that nobody sees, every gap one blank."""
    try:
        text = " ".join(cleaned(text).split())
    except QueryError as error:
        raise ValueError(f"cannot be used: {error}") from error
    if not text:
        raise ValueError
    return text


def _colour(text: str) -> str:
    """`#rgb` or `#rrggbb` as `#rrggbb`, in small letters."""
    if not re.fullmatch(r"#([0-9a-fA-F]{3}|[0-9a-fA-F]{6})", text):
        raise ValueError
    digits = text[1:].lower()
    return "#" + (digits if len(digits) == 6 else "".join(digit * 2 for digit in digits))


def wording(text: str) -> str:
    """A wording, every part of it trimmed. Raises `ValueError` on what means something else in a typed query."""
    text = _one_line(text)
    if re.search(r"\s-", text):
        raise ValueError("has ' -' in it, which sets off what is unwanted; move that to negative_queries")
    if "|" in text and "+" not in text:
        raise ValueError("has '|' in it, which stands between wordings; list them one by one")
    if len(text.split("+")) > 1 and not all(each.strip() for part in text.split("+") for each in part.split("|")):
        raise ValueError("has an empty part beside a + or |; name what belongs there")
    try:
        names = names_in(text)
        if len(names) == 1:
            text = parse_query(names[0]).name
    except QueryError as error:
        raise ValueError(f"cannot be used: {error}") from error
    if len(names) > 1:
        raise ValueError(f"reads as {len(names)} names ({'; '.join(names)[:_SHOWN]}); list them one by one")
    if not names:
        raise ValueError
    return "+".join("|".join(map(_one_line, part.split("|"))) for part in text.split("+"))


def _plain_wording(text: str) -> str:
    if "+" in (plain := wording(text)):
        raise ValueError("joins wordings with +; list them one by one")
    return plain


def _queries(texts: list[str]) -> list[str]:
    combined = next((text for text in texts if "+" in text), None)
    if combined and len(texts) > 1:
        raise ValueError(
            f"mixes {combined!r}, whose parts give one segment together, with other wordings; "
            "give it a category of its own"
        )
    return texts


class Entry(BaseModel):
    """One category as the file says it; `None`, no queries and no colour stand for the defaults."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Annotated[str, AfterValidator(_one_line)] = Field(description=_TEXT)
    id: int | None = Field(None, ge=1, description="a whole number of 1 or more")
    supercategory: Annotated[str, AfterValidator(_one_line)] = Field(SUPERCATEGORY, description=_TEXT)
    queries: Annotated[list[Annotated[str, AfterValidator(wording)]], AfterValidator(_queries)] = Field(
        default_factory=list,
        min_length=1,
        description="a list of at least one wording, each a text, such as [dog, puppy]",
    )
    negative_queries: list[Annotated[str, AfterValidator(_plain_wording)]] = Field(
        default_factory=list, description="a list of texts without +, such as [hot dog]"
    )
    threshold: float | None = Field(
        None, gt=0, le=1, allow_inf_nan=False, description="a number above 0, at most 1, such as 0.8"
    )
    presence: float | None = Field(
        None, ge=0, le=1, allow_inf_nan=False, description="a number from 0 to 1, such as 0.3"
    )
    min_area: int = Field(0, ge=0, description="a whole number of pixels, 0 or more")
    colour: Annotated[str, AfterValidator(_colour)] = Field(
        "", description='#rrggbb or #rgb in quotes, such as "#ff8800"'
    )


Fault = tuple[tuple[str | int, ...], str]


def check_entry(values: dict[str, Any]) -> tuple[Entry | None, list[Fault]]:
    """The entry, or what is wrong with it: the way to each fault (key, place in a list) and a sentence."""
    try:
        return Entry.model_validate(values), []
    except ValidationError as error:
        found: dict[tuple[str | int, ...], str] = {}
        for each in error.errors(include_url=False, include_context=False):
            way = each["loc"][:2]
            found.setdefault(way, _sentence(str(way[0]), each["type"], each["msg"], each["input"]))
        return None, list(found.items())


def _sentence(key: str, kind: str, message: str, value: object) -> str:
    if kind == "extra_forbidden":
        known = Entry.model_fields
        return f"is not a key of a category{did_you_mean(key, known)}; it knows {', '.join(known)}"
    right = Entry.model_fields[key].description
    if kind == "missing":
        return f"is missing; it must be {right}"
    if kind == "value_error" and (reason := message.removeprefix("Value error, ").strip()):
        return reason if isinstance(value, list) else f"{shown(value)} {reason}"
    return f"must be {right}, got {shown(value)}"


def shown(value: object) -> str:
    """A value as a message repeats it: the way YAML writes it, and not too much of it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
