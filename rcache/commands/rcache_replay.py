"""rcache-replay: rebuild state from append logs, checkpoints and savefiles; look into them; put them into a server.

What it is: the program: from the command line to an exit code (the table is in `replay_exit`). Each command is one function.
Which thread runs it: the main thread.
What it owns: standard output, and the order of things.
What it must not know: how files are laid out or histories resolved.

Every command that acts reads the files twice: first everything's heads, to know what is live and whether anything is missing;
then what is needed. Files are never changed: a torn tail is left out, not cut off.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence

from rcache.commands.progress_bar import progress
from rcache.commands.replay_evictions import evicted_at, evicted_between
from rcache.commands.replay_exit import INTERRUPTED, ReplayExit, ReplayStopped
from rcache.commands.replay_files import Loaded, find_files, load
from rcache.commands.replay_history import key_history, show_change
from rcache.commands.replay_inject import Injected, chosen_rows, inject, open_client, terms_between
from rcache.commands.replay_options import PROGRAM, ReplayOptions, parse
from rcache.commands.replay_print import Listing, show_record
from rcache.commands.replay_report import SKIP_HINT, Summary, advice, show_summary, summarise, verdict
from rcache.commands.replay_savefile import write_savefile
from rcache.commands.show import show_bytes, show_count, show_size
from rcache.records.reader import DataDamaged, Tail
from rcache.records.rebuild import RebuiltBucket, rebuild


def main(argv: Sequence[str] | None = None) -> int:
    """Run rcache-replay; return its exit code."""
    options = parse(sys.argv[1:] if argv is None else argv)
    try:
        code = int(_RUN[options.command](options))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ReplayExit.DONE
    except KeyboardInterrupt:
        if options.command == "inject":
            print(f"{PROGRAM}: stopped. What is in stays in; the same command again does the rest", file=sys.stderr)
        return INTERRUPTED
    except ReplayStopped as stopped:
        return _stop(options, stopped.code, str(stopped))
    except DataDamaged as damage:
        return _stop(options, ReplayExit.DAMAGED, f"{damage} ({SKIP_HINT})")
    except OSError as error:
        return _stop(options, ReplayExit.DAMAGED, f"{error.filename or 'a file'} cannot be read: {error.strerror or error}")
    return code


def _stop(options: ReplayOptions, code: ReplayExit, why: str) -> ReplayExit:
    print(f"{PROGRAM}: {why}", file=sys.stderr)
    if options.json and options.command not in ("print", "history"):
        print(json.dumps({"command": options.command, "error": why, "exit_code": code}))
    return code


def _finish(options: ReplayOptions, summary: Summary, lines: list[str], code: ReplayExit) -> ReplayExit:
    """Say what was read and done. `lines`: what was done, for people; `summary` holds it already."""
    if options.json:
        print(json.dumps({**summary, "exit_code": code}))
        return code
    print("\n".join([*show_summary(summary), *lines]))
    if code in (ReplayExit.DAMAGED, ReplayExit.INCOMPLETE):
        print(f"{PROGRAM}: {advice(code)}", file=sys.stderr)
    return code


def _verify(options: ReplayOptions) -> ReplayExit:
    loaded = load(options)
    return _finish(options, summarise(options, loaded), [], verdict(options, loaded))


def _rebuild(options: ReplayOptions) -> ReplayExit:
    assert options.output is not None
    loaded = load(options)
    summary, code = summarise(options, loaded), verdict(options, loaded)
    if code or not loaded.found.files:
        return _finish(options, summary, [], code or _nothing_there(loaded))
    buckets = _second_walk(options, loaded)
    with progress("writing") as report:
        written = write_savefile(options, loaded, buckets, report)
    summary["wrote"] = {
        "file": str(options.output),
        "items": written.items,
        "buckets": written.buckets,
        "bytes": written.bytes,
        "is_present": written.is_present,
    }
    lines = [f"wrote      {options.output}: {written.items:,} items, {show_size(written.bytes)}"]
    if not written.is_present:
        lines.append("           it is not all that the files hold, so no node takes it for its own: use rcached --restore")
    return _finish(options, summary, lines, ReplayExit.DONE)


def _nothing_there(loaded: Loaded) -> ReplayExit:
    """Files were named, and not one has a header left."""
    return ReplayExit.DONE if loaded.found.files else ReplayExit.INCOMPLETE


def _second_walk(options: ReplayOptions, loaded: Loaded) -> dict[int, RebuiltBucket]:
    with progress("rebuilding") as report:
        return rebuild(loaded.found.sources(), loaded.survey.plans, until_ms=options.until, skip_damaged=True, progress=report)


def _inject(options: ReplayOptions) -> ReplayExit:
    client = open_client(options)
    with client:
        loaded = load(options)
        summary, code = summarise(options, loaded), verdict(options, loaded)
        if code or not loaded.found.files:
            return _finish(options, summary, [], code or _nothing_there(loaded))
        buckets = _second_walk(options, loaded)
        total = sum(1 for _ in chosen_rows(buckets, options.prefix))
        files = loaded.found.newest.cluster_id
        terms = terms_between(files, client.cluster_id, overwrite=options.overwrite, rate=options.rate)
        before = evicted_at(client, options.secret)
        with progress("injecting") as report:
            injected = inject(chosen_rows(buckets, options.prefix), total, client, terms, report)
        evicted = evicted_between(before, evicted_at(client, options.secret))
    summary["injected"] = {
        "into": str(options.into),
        "same_cluster": files == client.cluster_id,
        "items": injected.done,
        "kept": injected.kept,
        "expired": injected.expired,
        "failed": injected.failed,
        "not_sent": injected.unsent,
        "failures": injected.failures,
        "evicted": evicted,
    }
    done = ReplayExit.NOT_WRITTEN if injected.failed else ReplayExit.DONE
    return _finish(options, summary, _show_injected(options, injected, summary), done)


def _show_injected(options: ReplayOptions, injected: Injected, summary: Summary) -> list[str]:
    into = summary["injected"]
    lines = [f"injected   {show_count(injected.done, 'item')} into {options.into}"]
    if not any((injected.done, injected.kept, injected.expired, injected.failed)):
        which = f" that begins with {show_bytes(options.prefix)}" if options.prefix else ""
        lines.append(f"           the files hold no key{which}{'' if summary['until_ms'] is None else ' at that moment'}")
    if injected.kept:
        what = "a newer value" if into["same_cluster"] else "a value"
        keys = show_count(injected.kept, "key")
        lines.append(f"kept       {keys} of which the server had {what} (--overwrite replaces them)")
    if injected.expired:
        lines.append(f"expired    {show_count(injected.expired, 'item')} left out")
    if injected.failed > injected.unsent:
        lines.append(f"failed     {show_count(injected.failed - injected.unsent, 'key')}; the first of them:")
        lines += [f"           {failure}" for failure in injected.failures]
    if injected.unsent:
        unsent = show_count(injected.unsent, "key")
        lines.append(f"not sent   {unsent}: nothing was taken any more; the same command does the rest")
    if into["evicted"]:
        evicted = show_count(into["evicted"], "item")
        lines.append(f"evicted    {evicted} by the nodes meanwhile: there is no room for all (rcached --memory-limit)")
    return lines


def _print(options: ReplayOptions) -> ReplayExit:
    found = find_files(options.paths)
    for damage in found.damaged:
        if not options.skip_damaged:
            raise damage
        print(f"{PROGRAM}: {damage}", file=sys.stderr)
    listing = Listing(found, options)
    for number, shown in enumerate(listing.records(), 1):
        print(show_record(shown, options))
        if number == options.limit:
            return ReplayExit.DONE
    for path, findings in listing.findings:
        for damage in findings.damage:
            print(f"{PROGRAM}: {damage}", file=sys.stderr)
        if findings.tail is Tail.TORN:
            print(f"{PROGRAM}: {path}: torn tail of {findings.torn_bytes} bytes left out", file=sys.stderr)
    return ReplayExit.DONE


def _history(options: ReplayOptions) -> ReplayExit:
    loaded = load(options)
    if loaded.damage and not options.skip_damaged:
        raise loaded.damage[0]
    records = key_history(loaded, options)
    for each in records[: options.limit or None]:
        print(show_change(each, options))
    for problem in loaded.survey.problems if records else []:
        if problem.startswith(f"bucket {records[0].record.bucket}:"):
            print(f"{PROGRAM}: {problem}", file=sys.stderr)
    if not records:
        print(f"{PROGRAM}: no record of this key", file=sys.stderr)
    return ReplayExit.DONE


_RUN: dict[str, Callable[[ReplayOptions], ReplayExit]] = {
    "verify": _verify,
    "print": _print,
    "history": _history,
    "rebuild": _rebuild,
    "inject": _inject,
}

if __name__ == "__main__":
    sys.exit(main())
