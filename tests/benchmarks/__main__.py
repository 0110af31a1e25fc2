"""Run the benchmarks, or those that are named, print what they found and write it below ``.build/bench``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import ExitStack

from rich.console import Console

from tests.benchmarks import claim, hook, importing, results, store
from tests.benchmarks.setting import Setting
from tests.support.environments import ROOT, EnvironmentFailed
from tests.support.processes import MissingRequirement

BENCHMARKS = {"import": importing.run, "hook": hook.run, "claim": claim.run, "store": store.run}


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="small numbers: to see that it works, not to quote")
    args = parser.parse_args()
    if unknown := set(args.names) - set(BENCHMARKS):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    console = Console(width=None if sys.stdout.isatty() else 110)
    machine = results.machine()
    console.print(
        f"{machine['cpu']}, {machine['cpus']} CPUs, {machine['memory_gib']} GiB, {machine['os']}, "
        f"Python {sys.version.split()[0]}, commit {results.revision() or 'unknown'}",
        highlight=False,
    )
    found: list[results.Result] = []
    missing = False
    with ExitStack() as stack:
        setting = Setting(stack, quick=args.quick)
        for name in args.names or BENCHMARKS:
            load, begin = os.getloadavg()[0], time.perf_counter()
            console.print(f"\n[bold]{name}[/] (load {load:.2f} before)")
            try:
                result = BENCHMARKS[name](setting)
            except (MissingRequirement, EnvironmentFailed) as reason:
                console.print(f"[yellow]not measured:[/] {reason}", highlight=False)
                missing = True
                continue
            seconds = time.perf_counter() - begin
            results.show(console, result)
            path = results.write(result, quick=args.quick, load_before=load, seconds=seconds)
            console.print(f"{seconds:.0f} s; written to {path.relative_to(ROOT)}", highlight=False)
            found.append(result)
    console.print()
    results.show_targets(console, found)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
