#!/usr/bin/env python3
"""Decodes answers of our API with the models of the official Python SDK, the strictest of the clients.

    TRAM_API_REPLIES=/tmp/replies.json cargo nextest run -p tram-api every_endpoint_succeeds
    python3 tests/openapi/sdk.py /tmp/replies.json

Needs `pip install koyeb-sdk==1.5.5`; that test runs it by itself where `scripts/setup test` has installed the SDK. The file holds, by operation, the name of the message and one answer of each
endpoint that succeeds. Beside decoding, a member that the model does not know is told, since it would be lost.
"""

import importlib
import json
import re
import sys

# Answers that the SDK cannot decode whatever a server sends, and members that are ours.
SKIPPED = {
    "RevealSecret": "the model wants an object, and the value of a simple secret is text: the SDK's own fault",
}
OURS = {
    "decisions": "GetDeploymentScalingReply: how many instances there should be, and why",
    "stored_bytes": "InstanceSnapshot: what a snapshot takes on the disk",
    "isolation": "CatalogInstance and its list item: what stands between its instances and the machine",
    "model": "DeploymentDefinition: a model in place of an image",
    "role": "CreateCredential and Credential: whether a token only reads",
}


def unknown(model, given, path=""):
    """Paths of members that the model has no place for."""
    names = {field.alias or name: name for name, field in type(model).model_fields.items()}
    for name, value in given.items():
        if name not in names:
            yield f"{path}{name}"
            continue
        inner = getattr(model, names[name])
        pairs = []
        if isinstance(value, dict):
            pairs = [(inner, value, f"{path}{name}.")]
        elif isinstance(value, list) and isinstance(inner, list):
            pairs = [(one, other, f"{path}{name}.") for one, other in zip(inner, value)]
        for one, other, below in pairs:
            if hasattr(type(one), "model_fields") and isinstance(other, dict):
                yield from unknown(one, other, below)


def main(path):
    models = importlib.import_module("koyeb.api.models")
    by_name = {name.lower(): getattr(models, name) for name in dir(models)}
    with open(path, encoding="utf-8") as file:
        replies = json.load(file)
    failures = 0
    for operation, reply in sorted(replies.items()):
        if operation in SKIPPED:
            continue
        name = re.sub("[^a-z0-9]", "", reply["message"].lower())
        model = by_name.get(name) or by_name.get("ktest" + name)
        if model is None and reply["body"] == {}:
            continue  # the SDK decodes an empty answer as a plain object
        if model is None:
            print(f"{operation}: the SDK has no model {reply['message']}")
            failures += 1
            continue
        try:
            decoded = model.from_dict(reply["body"])
        except Exception as error:  # whatever the SDK raises is what a user would see
            print(f"{operation}: {error}")
            failures += 1
            continue
        for member in sorted(set(unknown(decoded, reply["body"]))):
            if member.split(".")[-1] not in OURS:
                print(f"{operation}: the model {reply['message']} does not know {member}")
                failures += 1
    print(f"{len(replies)} answers, {failures} failures", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
