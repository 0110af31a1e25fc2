"""Run all or the named benchmarks, print their results and write them to ``.build/bench``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from contextlib import ExitStack

from rich.console import Console

from tests.benchmarks import (
    analysis,
    claim,
    dispatch,
    executor,
    fleet,
    hook,
    importing,
    insight,
    migration,
    placement,
    results,
    rollups,
    store,
)
from tests.benchmarks.setting import Setting
from tests.support.environments import ROOT, EnvironmentFailedError
from tests.support.processes import MissingRequirementError

BENCHMARKS = {
    "import": importing.run,
    "hook": hook.run,
    "claim": claim.run,
    "store": store.run,
    "migration": migration.run,
    "placement": placement.run,
    "dispatch": dispatch.run,
    "spread": executor.spread,
    "slow": executor.slow,
    "death": executor.death,
    "fleet": fleet.run,
    "insight": insight.run,
    "analysis": analysis.run,
    "statistics": rollups.run,
}


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(","))


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="small numbers: to see that it works, not to quote")
    parser.add_argument("--sizes", type=_sizes, default=(), help="attempts, smallest first: 100000,1000000")
    args = parser.parse_args()
    if unknown := set(args.names) - set(BENCHMARKS):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    # On SIGTERM leave in order, so that servers stop and their gigabytes go.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
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
        setting = Setting(stack, quick=args.quick, attempts=args.sizes)
        for name in args.names or BENCHMARKS:
            load, begin = os.getloadavg()[0], time.perf_counter()
            console.print(f"\n[bold]{name}[/] (load {load:.2f} before)")
            try:
                result = BENCHMARKS[name](setting)
            except (MissingRequirementError, EnvironmentFailedError) as reason:
                console.print(f"[yellow]not measured:[/] {reason}", highlight=False)
                missing = True
                continue
            seconds = time.perf_counter() - begin
            results.show(console, result)
            trial = "-quick" if args.quick else "".join(f"-{size}" for size in args.sizes)
            path = results.write(result, trial=trial, load_before=load, seconds=seconds)
            console.print(f"{seconds:.0f} s; written to {path.relative_to(ROOT)}", highlight=False)
            found.append(result)
    console.print()
    results.show_targets(console, found)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
