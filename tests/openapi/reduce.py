#!/usr/bin/env python3
"""Reduces upstream's Swagger 2 file to the facts that compare.py compares.

    tests/openapi/reduce.py UPSTREAM > tests/openapi/upstream.json

What stays: paths, methods, names of operations, parameters, answers, and of messages their members, types, formats and
enumerations. Nothing that was written for people stays. The result has the shape of the original, so compare.py reads
either. Standard library alone.
"""

import json
import sys

METHODS = ("get", "post", "put", "patch", "delete")
# What a schema or a parameter may be made of.
FACTS = ("$ref", "type", "format", "enum", "in", "name", "required")


def schema(given):
    """One schema, and every schema in it."""
    kept = {fact: given[fact] for fact in FACTS if fact in given}
    if isinstance(kept.get("required"), bool) and not kept["required"]:
        del kept["required"]
    if "items" in given:
        kept["items"] = schema(given["items"])
    if "schema" in given:
        kept["schema"] = schema(given["schema"])
    if "properties" in given:
        kept["properties"] = {name: schema(member) for name, member in sorted(given["properties"].items())}
    if isinstance(given.get("additionalProperties"), dict):
        kept["additionalProperties"] = schema(given["additionalProperties"])
    elif "additionalProperties" in given:
        kept["additionalProperties"] = given["additionalProperties"]
    return kept


def operation(given):
    return {
        "operationId": given["operationId"],
        "parameters": [schema(parameter) for parameter in given.get("parameters", [])],
        "responses": {
            status: {"schema": schema(response["schema"])} if "schema" in response else {}
            for status, response in sorted(given["responses"].items())
        },
    }


def lines(name, members):
    """A member of the document with one line for each of its own: a change of upstream's is a change of few lines."""
    inner = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(members.items()))
    return f"{json.dumps(name)}: {{\n{inner}\n}}"


def main(path):
    with open(path, encoding="utf-8") as file:
        given = json.load(file)
    paths = {
        path: {method: operation(methods[method]) for method in METHODS if method in methods}
        for path, methods in given["paths"].items()
    }
    definitions = {name: schema(definition) for name, definition in given["definitions"].items()}
    print("{\n" + lines("paths", paths) + ",\n" + lines("definitions", definitions) + "\n}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
