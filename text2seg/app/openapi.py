"""The description of the HTTP API: the schemas that the routes of api.py name, and the whole OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from text2seg._version import __version__
from text2seg.app.fields import Setting, settings_of
from text2seg.app.folder.jobs import State
from text2seg.app.settings import AppSettings
from text2seg.config import Encoding, Settings

Json = dict[str, Any]

TEXT, WHOLE, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
TEXTS: Json = {"type": "array", "items": TEXT}
FREE: Json = {"type": "object"}
FILE = {"type": "string", "format": "binary"}
BLOB = {"application/octet-stream": {"schema": FILE}}
ENCODINGS = {"type": "string", "enum": list(get_args(Encoding)), "default": "rle"}
REASONS = {
    400: "An image, a query, a setting or the form cannot be used.",
    401: "A name and a password are needed.",
    403: "The request comes from a page of another site, or asks for the list of jobs in an app without passwords.",
    404: "There is no such job.",
    409: "The job has no result yet, or never will.",
    413: "The upload is too large.",
    415: "The body is not a form (multipart/form-data).",
    421: "The app does not know this host name.",
    429: "You have too many jobs; delete one first.",
    503: "The queue or the list of jobs is full; try again later.",
}
"""Meaning of each status of an error."""
ALWAYS = (403, 421)
"""Errors of every route; 401 only if the app has passwords."""


def ref(name: str) -> Json:
    """Return a reference to one of the schemas below."""
    return {"$ref": f"#/components/schemas/{name}"}


def answers(schema: Json, *errors: int, status: int = 200, **others: Json) -> dict[int | str, Json]:
    """Return the `responses` of a route: one with JSON of a schema, and errors. `others` are further media types of the
    first, as `image_png={...}`."""
    content = {"application/json": {"schema": schema}}
    content |= {kind.replace("_", "/"): {"schema": other} for kind, other in others.items()}
    return {status: {"description": "The result.", "content": content}} | failures(*errors)


def failures(*errors: int) -> dict[int | str, Json]:
    """Return the responses with these error statuses."""
    told = {"application/json": {"schema": ref("Error")}}
    return {status: {"description": REASONS[status], "content": told} for status in (*errors, *ALWAYS)}


def form(properties: Mapping[str, Json], *, required: tuple[str, ...] = (), **more: Any) -> Json:
    """Return the `openapi_extra` of a route that takes a form. Properties that are objects are sent as JSON text."""
    schema = {"type": "object", "properties": dict(properties), "required": [*required], **more}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def described(text: str, schema: Json) -> Json:
    """Return a schema with a description."""
    return {**schema, "description": text}


def entry(*, optional: tuple[str, ...] = (), **properties: Json) -> Json:
    """Return the schema of an object; all properties but the optional ones are always there."""
    needed = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": needed}


def either(*schemas: Json) -> Json:
    """Return a schema that is one of several."""
    return {"anyOf": [*schemas]}


NULL = {"type": "null"}


def _setting(setting: Setting) -> Json:
    """Return the schema of one setting."""
    many: Json = {"type": "array", "items": TEXT if setting.kind == "lines" else NUMBER}
    kinds: dict[str, Json] = {
        "choice": {"type": "string", "enum": list(setting.choices)},
        "flag": {"type": "boolean"},
        "whole": WHOLE,
        "number": NUMBER,
        "lines": many,
        "list": either(NUMBER, many),
    }
    schema = kinds.get(setting.kind, TEXT)
    return described(setting.help, either(schema, NULL) if setting.is_optional else schema)


def _settings() -> Json:
    """Return the schema of `text2seg.config.Settings`, by stage."""
    stages = {
        stage: {
            "type": "object",
            "properties": {each.name: _setting(each) for each in settings_of(kind)},
            "additionalProperties": False,
        }
        for stage, kind in get_type_hints(Settings).items()
    }
    return {"type": "object", "properties": stages, "additionalProperties": False}


def _schemas() -> Json:
    rle = entry(size={"type": "array", "items": WHOLE}, counts=TEXT)
    polygons = {"type": "array", "items": {"type": "array", "items": NUMBER}}
    return {
        "Error": entry(error=described("One sentence: what is wrong and what to do.", TEXT), optional=()),
        "Health": entry(
            status={"const": "ok"},
            text2seg=described("Version.", TEXT),
            models=described("The weights of CLIP and SAM.", TEXT),
            knows_only=described("All words that the models know; null if they know any.", either(TEXTS, NULL)),
        ),
        "Settings": _settings(),
        "Tools": {"type": "array", "items": entry(name=TEXT, summary=TEXT, images=TEXT, settings={"type": "array"})},
        "Explanation": entry(
            title=TEXT,
            panels={"type": "array", "items": entry(caption=TEXT, png=described("PNG in base64.", TEXT))},
            tables={"type": "array", "items": FREE},
            notes=TEXTS,
        ),
        "Dataset": entry(
            info=described(
                "`models`: names of the weights. `provenance`: their hashes and all settings. `verdicts`: what "
                "happened to each query. `warning`: the image is unlike what the models know.",
                FREE,
            ),
            licenses={"type": "array"},
            images={
                "type": "array",
                "items": entry(
                    id=WHOLE,
                    file_name=TEXT,
                    width=WHOLE,
                    height=WHOLE,
                    attributes=described("`presence`: presence from 0 to 1, by category or query.", FREE),
                    optional=("attributes",),
                ),
            },
            annotations={
                "type": "array",
                "items": entry(
                    id=WHOLE,
                    image_id=WHOLE,
                    category_id=WHOLE,
                    segmentation=described("RLE of COCO, or polygons.", either(rle, polygons)),
                    area=NUMBER,
                    bbox=described("x, y, width, height in pixels.", {"type": "array", "items": NUMBER}),
                    iscrowd=WHOLE,
                    score=described("SAM's score, times presence if a threshold of presence is used.", NUMBER),
                    attributes=described("SAM's score, map score, presence, points and candidates.", FREE),
                ),
            },
            categories={"type": "array", "items": entry(id=WHOLE, name=TEXT, supercategory=TEXT)},
        ),
        "Jobs": {"type": "array", "items": ref("Job")},
        "Job": entry(
            id=described("Keep it: without passwords, it is the only way to this job.", TEXT),
            name=TEXT,
            state={"type": "string", "enum": list(get_args(State))},
            total=described("Number of images.", WHOLE),
            done=described("Number of finished images, failed ones included.", WHOLE),
            seconds_left=described("Estimate; null if unknown.", either(NUMBER, NULL)),
            ahead=described("Number of jobs before this one in the queue.", WHOLE),
            failures=described("One sentence for each failed image.", TEXTS),
            notes=described("What was skipped.", TEXTS),
            unknown=described("One sentence for each category that the models cannot look for.", TEXTS),
            message=described('Why the job failed; "" if it did not.', TEXT),
        ),
    }


def describe(app: FastAPI, settings: AppSettings) -> Json:
    """Return the OpenAPI document of the routes of an app."""
    document = get_openapi(
        title="text2seg",
        version=__version__,
        summary="Type words, get masks.",
        description='Every error is `{"error": "one sentence"}` with a status from 400.',
        routes=app.routes,
        servers=[{"url": settings.public_url or "/"}],
    )
    document["components"] = {"schemas": _schemas()}
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # no route has parameters that FastAPI could refuse
            if settings.auth:
                operation["responses"] |= {str(key): value for key, value in failures(401).items()}
    if settings.auth:
        document["components"]["securitySchemes"] = {"password": {"type": "http", "scheme": "basic"}}
        document["security"] = [{"password": []}]
    return document
