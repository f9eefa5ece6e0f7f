"""python -m tests.aot show OPERATION...   what the shipped configurations take on every architecture
python -m tests.aot write OPERATION...  the same as the new budget
"""

from __future__ import annotations

import sys

from tests.aot import budget, record


def main(arguments: list[str]) -> int:
    if len(arguments) < 1 or arguments[0] not in ("show", "write"):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    for operation in arguments[1:] or record.operations():
        measured = budget.measure(operation)
        for name, row in measured.items():
            print(f"{operation} | {name} | " + ", ".join(f"{key} {value}" for key, value in row.items()))
        if arguments[0] == "write":
            budget.write(operation, measured)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
