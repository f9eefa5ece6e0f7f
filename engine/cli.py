"""The command `omnitrunk`. Heavy imports wait inside the commands, so that help and usage errors are immediate."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

DONE, FAILED, BAD_USAGE = 0, 1, 2
"""Exit codes, besides 75: stopped by a signal after a checkpoint."""

_SYSTEMS = (
    "multimae, mae, videomae, audiomae, pointmae, classifier, point_classifier, part_segmenter, omnivore, omnimae "
    "or m2pt"
)
_ALLOWED = "keys that may be left over or missing, such as 'head.*'"
_AVERAGED = "of a run: the trained weights or their average (default: the average where there is one)"

Command = Callable[[argparse.Namespace, list[str]], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Errors are one line on stderr; --debug adds the traceback."""
    options, overrides = _parser().parse_known_args(arguments)
    try:
        if overrides and not options.takes_overrides:
            raise ValueError(f"{options.command} does not know {overrides[0]}; see omnitrunk {options.command} --help")
        return options.run(options, overrides)
    except ValueError as error:
        return _fail(error, BAD_USAGE, debug=options.debug)
    except (Exception, KeyboardInterrupt) as error:
        return _fail(error, FAILED, debug=options.debug)


def _fail(error: BaseException, code: int, *, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    text = " ".join(str(error).split()) or type(error).__name__
    # A mistake of the user is told by its text alone; what nobody foresaw, also by its kind.
    kind = "" if isinstance(error, (ValueError, OSError, KeyboardInterrupt)) else f"{type(error).__name__}: "
    rank = f" (rank {os.environ['RANK']})" if "RANK" in os.environ else ""
    print(f"omnitrunk{rank}: error: {kind}{text}", file=sys.stderr, flush=True)
    return code


def _train(options: argparse.Namespace, overrides: list[str]) -> int:
    from omnitrunk.engine.config import load
    from omnitrunk.engine.train import train

    return train(load(options.config, overrides))


def _eval(options: argparse.Namespace, overrides: list[str]) -> int:
    from omnitrunk.engine.evaluation.reports import accuracy_by_length, gains_against, scores_of
    from omnitrunk.engine.restore import restore

    trained = restore(options.source, overrides)
    if options.clip_lengths:
        text, written = accuracy_by_length(trained, options.clip_lengths)
    elif options.against:
        text, written = gains_against(trained, restore(options.against, overrides))
    else:
        text, written = scores_of(trained)
    print(f"{trained.folder}, step {trained.step}: {text}")
    print(f"written to {written}")
    return DONE


def _show(options: argparse.Namespace, overrides: list[str]) -> int:
    from omnitrunk.engine.drawing.show import check_picture, draw_sheet, rows_of
    from omnitrunk.engine.restore import restore

    check_picture(options.output, options.samples)
    trained = restore(options.source, overrides)
    rows = rows_of(trained.config, options.samples)
    draw_sheet(trained.config, trained.model, trained.device, samples=rows).save(options.output)
    print(f"written to {options.output}")
    return DONE


def _convert(options: argparse.Namespace, overrides: list[str]) -> int:
    from omnitrunk.engine.convert import Request, convert

    request = Request(
        system=options.system,
        source=options.source,
        output=options.output,
        target=options.to,
        recipe=options.config,
        overrides=tuple(overrides),
        allow=tuple(options.allow),
        weights=options.weights,
        report=options.report,
    )
    print(convert(request))
    return DONE


def _merge(options: argparse.Namespace, _overrides: list[str]) -> int:
    from omnitrunk.engine.merge import merge

    print(merge(options.source, options.output, options.weights))
    return DONE


def _world(options: argparse.Namespace, _overrides: list[str]) -> int:
    from omnitrunk.engine.world import write_world

    world = write_world(options.folder, scenes=options.scenes, seed=options.seed)
    files, size = sum(world.files.values()), sum(world.bytes.values()) / 1e6
    state = f"written in {world.seconds:.1f} s" if world.written else "was there already"
    print(f"{world.root}: {files} files, {size:.1f} MB, {len(world.classes)} classes, {state}")
    return DONE


def _check(options: argparse.Namespace, overrides: list[str]) -> int:
    from omnitrunk.engine.check import check
    from omnitrunk.engine.config import load

    print(check(load(options.config, overrides), gpus=options.gpus, gpu=options.gpu))
    return DONE


def _bench(options: argparse.Namespace, rest: list[str]) -> int:
    import importlib

    # The one place that looks up at bench/: measurements know all floors, and no floor needs them.
    measure = importlib.import_module(f"omnitrunk.bench.{options.what}").main
    return measure(["--help"] if options.asks_help else rest)


def _doctor(_options: argparse.Namespace, _overrides: list[str]) -> int:
    from omnitrunk.engine.doctor import report

    print(report())
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="omnitrunk", description="One transformer trunk, many modalities.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = _add(commands, "train", _train, "train a run, or resume it", overrides=True)
    train.add_argument("config", type=Path, metavar="CONFIG", help="a TOML file; configs/ has one per recipe")
    evaluate = _add(
        commands,
        "eval",
        _eval,
        "k-NN against a random encoder and raw input, accuracy of a classifier, IoU of parts, or retrieval",
        overrides=True,
    )
    evaluate.add_argument("source", type=Path, metavar="RUN_OR_CHECKPOINT")
    instead = evaluate.add_mutually_exclusive_group()
    instead.add_argument(
        "--clip-lengths", type=int, nargs="+", metavar="N", help="instead: accuracy with clips of so many frames"
    )
    instead.add_argument(
        "--against", type=Path, metavar="RUN_OR_CHECKPOINT", help="instead: F1 of every class, compared with that run"
    )
    show = _add(commands, "show", _show, "draw input | masked | prediction | target", overrides=True)
    show.add_argument("source", type=Path, metavar="RUN_OR_CHECKPOINT")
    show.add_argument("-o", "--output", type=Path, required=True, metavar="F.png", help="picture to write")
    show.add_argument("--samples", type=int, metavar="N", help="rows of the sheet, up to 64 (default 6)")
    convert = _add(commands, "convert", _convert, "weights of releases and of timm to ours, and back", overrides=True)
    convert.add_argument("system", metavar="SYSTEM", help=_SYSTEMS)
    convert.add_argument("source", type=Path, metavar="IN", help="file; to the outside, also a run or a checkpoint")
    convert.add_argument("output", type=Path, metavar="OUT", help="file to write: .safetensors, .pth or .pt")
    convert.add_argument("--to", choices=("omnitrunk", "official", "timm"), default="omnitrunk", help="names to write")
    convert.add_argument("--config", type=Path, metavar="TOML", help="recipe whose sizes apply (default: the run's)")
    convert.add_argument("--allow", nargs="+", action="extend", default=[], metavar="PATTERN", help=_ALLOWED)
    convert.add_argument("--report", type=Path, metavar="F.json", help="write what became of every key")
    merge = _add(commands, "merge", _merge, "fold joined layers into a plain model with the same outputs")
    merge.add_argument("source", type=Path, metavar="RUN_OR_CHECKPOINT")
    merge.add_argument("-o", "--output", type=Path, required=True, metavar="F.safetensors", help="file to write")
    for command in (convert, merge):
        command.add_argument("--weights", choices=("auto", "model", "ema"), default="auto", help=_AVERAGED)
    world = _add(commands, "world", _world, "write the embedded data set as ordinary files")
    world.add_argument("folder", type=Path, metavar="OUT", help="folder to write, new or empty")
    world.add_argument("--scenes", type=int, default=2000, metavar="N", help="scenes over all splits (default 2000)")
    world.add_argument("--seed", type=int, default=0, metavar="S", help="key of everything random (default 0)")
    check = _add(commands, "check", _check, "validate a configuration; memory, arithmetic and speed", overrides=True)
    check.add_argument("config", type=Path, metavar="CONFIG")
    check.add_argument("--gpus", type=int, default=1, metavar="N", help="devices that share a batch (default 1)")
    check.add_argument("--gpu", metavar="KIND", help="predict the speed on this kind, for example h200")
    summary = "measure against peers and physics; kernels --help lists the options"
    bench = _add(commands, "bench", _bench, summary, help_action=_HelpOfOne)
    bench.add_argument(
        "what",
        choices=("kernels", "step", "pathways", "pathway_step", "window_step", "joint", "gpu", "tune"),
        help="operations; steps (MultiMAE, joined, windows); the M2PT and Omnivore experiments; GPU checks; launches",
    )
    bench.set_defaults(takes_overrides=True, asks_help=False)
    _add(commands, "doctor", _doctor, "what is installed, and which backend every operation will use")
    return parser


class _HelpOfOne(argparse._HelpAction):
    """--help about all measurements, or, after the name of one, about that one's own options."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if namespace.what is None:
            super().__call__(parser, namespace, values, option)
        namespace.asks_help = True


def _add(
    commands: argparse._SubParsersAction,
    name: str,
    run: Command,
    summary: str,
    *,
    overrides: bool = False,
    help_action: str | type[argparse.Action] = "help",
) -> argparse.ArgumentParser:
    more = "Any field of the configuration can be overridden: --section.field VALUE." if overrides else None
    parser = commands.add_parser(
        name, help=summary, description=summary, epilog=more, allow_abbrev=False, add_help=False
    )
    parser.set_defaults(run=run, takes_overrides=overrides)
    parser.add_argument("-h", "--help", action=help_action, help="show this help message and exit")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser
