"""A thousand services created, healthy and deleted through the controller on the fake site."""

import json
import os
import subprocess


def run():
    program = os.path.join(os.environ["TRAM_TARGET"], "examples", "thousand_services")
    said = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return json.loads(said.strip().splitlines()[-1])
