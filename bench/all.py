"""Runs benchmarks by name and keeps SPEC.md's table true.

A benchmark is a file bench/<name>.py (dashes as underscores) with `run() -> dict` that returns the members of
`FIGURE` but for name and machine. Each compares with its peer in the same run where it has one: the ratio holds when
the machine's speed drifts. What was measured is kept at once, so a benchmark that fails costs no other's figure; the
exit status is 1 then.
"""

import importlib.util
import json
import os
import pathlib
import platform
import sys
import traceback

HERE = pathlib.Path(__file__).resolve().parent
PROJECT = HERE.parent
RESULTS = HERE / "results.json"
FIGURE = ["name", "figure", "unit", "goal", "pass", "peer", "ratio", "runs", "spread", "machine"]
NAMES = ["edge", "edge-latency", "connection-memory", "wake-deep", "light-frozen", "light-checkpointed", "paging", "burst-from-zero", "burst-100", "rollout", "startup", "sandbox-api",
         "pool-claim", "exec", "file-transfer", "snapshot", "fork", "fork-processes", "neighbour",
         "thousand-services", "sleepers-10000", "sandbox-memory", "wake-storm", "launch", "sandbox-inner", "keepalive-azure", "autoscale-llm", "planner-million",
         "engine", "engine-mixed", "engine-prefix", "engine-copy", "fairness", "model-wake", "stream-survival", "routing-mooncake",
         "routing-choice", "gateway", "streams-1000"]
# Two figures of one promise: who asks for the first gets the other before it.
ALONG = {"edge": ["edge-latency"]}
BEGIN, END = "<!-- figures: made by `make bench` -->", "<!-- end of figures -->"


def machine():
    """What was measured on, in a few words."""
    model = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),
                 platform.machine())
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} x {model}, {memory_gib:.0f} GiB, Linux {platform.release().split('-')[0]}"


def load(name):
    """The file of a benchmark, under a name of its own: the tests' directory has an engine.py too."""
    file = HERE / f"{name.replace('-', '_')}.py"
    spec = importlib.util.spec_from_file_location(f"bench_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure(name):
    """One figure, complete."""
    module = load(name)
    figure = {**module.run(), "name": name, "machine": machine()}
    if set(figure) != set(FIGURE):
        raise AssertionError(f"{name} must give {FIGURE} and gave {sorted(figure)}")
    empty = [key for key in FIGURE if figure[key] is None and key not in ("peer", "ratio")]
    if empty or not isinstance(figure["pass"], bool):
        raise AssertionError(f"{name} must say {', '.join(empty) or 'whether it passed'}: {figure}")
    return {key: figure[key] for key in FIGURE}


def shown(value):
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def rewrite_table(results):
    """Puts the figures into SPEC.md between its two marks."""
    page = PROJECT / "SPEC.md"
    text = page.read_text()
    rows = ["| name | figure | unit | goal | met | peer | ratio | runs | spread |",
            "|---|---|---|---|---|---|---|---|---|"]
    for name in NAMES:
        one = results.get(name)
        if one:
            rows.append("| `{}` | {} | {} | {} | {} | {} | {} | {} | {} |".format(
                name, shown(one["figure"]), one["unit"], one["goal"], "yes" if one["pass"] else "no",
                one["peer"] or "", shown(one["ratio"]), one["runs"], one["spread"]))
    machines = sorted({one["machine"] for one in results.values()})
    rows += ["", "Measured on: " + "; ".join(machines) + "."]
    start, rest = text.split(BEGIN)
    _, end = rest.split(END)
    page.write_text(f"{start}{BEGIN}\n" + "\n".join(rows) + f"\n{END}{end}")


def keep(figure):
    """Puts one figure beside those that are there already, into the file and the table."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[figure["name"]] = figure
    RESULTS.write_text(json.dumps({name: results[name] for name in NAMES if name in results}, indent=2) + "\n")
    rewrite_table(results)


def main():
    sys.path.insert(0, str(HERE))
    sys.path.insert(0, str(PROJECT / "tests" / "e2e"))
    wanted = [name for name in sys.argv[1:] if name] or NAMES
    unknown = [name for name in wanted if name not in NAMES]
    if unknown:
        sys.exit(f"there is no benchmark named {', '.join(unknown)}; there are {', '.join(NAMES)}")
    wanted = [one for name in wanted for one in ([*ALONG.get(name, []), name] if len(wanted) == 1 else [name])]
    failed = []
    for name in wanted:
        print(f"== {name}", file=sys.stderr, flush=True)
        try:
            figure = measure(name)
        except (Exception, SystemExit):  # told, and the others go on
            traceback.print_exc()
            failed.append(name)
            continue
        print(json.dumps(figure), flush=True)
        keep(figure)
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
