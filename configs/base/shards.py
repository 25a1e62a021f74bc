"""
Recognition in several processes: which share is that of this one, and where its results go.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from typing import Any

from recog.batches import Batch, fingerprint, plan_batches, share_out
from recog.shards import (
    NBEST_FILE,
    AllFailedError,
    Shard,
    ShardError,
    differences,
    merge_shards,
    read_record,
    unfinished_shards,
)
from rf_models.options import SAMPLE_RATE

from .corpus import Corpus
from .options import OptionError
from .processes import num_processes, rank
from .run import make_output_dir, stop_if_finished

__all__ = ["begin_shard", "merge_when_complete", "plan_of_shard", "shard_of_this_process"]


def shard_of_this_process(option: str | None) -> Shard | None:
    """
    :param option: value of ``shard``
    :return: None: this process does everything
    :raises OptionError: the option together with several processes of torchrun
    """
    number = num_processes()
    if number == 1:
        return None if option is None else Shard.parse(option)
    if option is not None:
        raise OptionError(
            f"shard = {option}, but torchrun has started {number} processes, each of which takes its share:"
            " leave one of both out"
        )
    return Shard(rank() + 1, number)


def plan_of_shard(
    shard: Shard | None, corpus: Corpus, parts: tuple[str, ...], *, batch_size: int, max_seqs: int
) -> tuple[list[Batch], dict[str, Any]]:
    """
    :param shard: None: everything
    :param corpus:
    :param parts: to recognise
    :param batch_size: in samples
    :param max_seqs:
    :return: batches of this process; what says whether those of the other shards belong to the same plan
    :raises OptionError: there is not a batch for each shard; the packed corpus is not what its manifest says
    """
    utts = corpus.forward_order(parts)
    if len(utts) != corpus.num_seqs(parts):
        raise OptionError(
            f"{corpus.folder}: corpus.json says that {', '.join(parts)} have {corpus.num_seqs(parts)} utterances, but"
            f" there are {len(utts)}: prepare the corpus again"
        )
    batches = plan_batches(utts, batch_size=batch_size, max_seqs=max_seqs)
    plan = {"num_utterances": sum(len(batch.utts) for batch in batches), "fingerprint": fingerprint(batches)}
    if shard is None:
        return batches, plan
    if shard.count > len(batches):
        raise OptionError(
            f"{shard.count} shards, but with batch_size = {batch_size} and max_seqs = {max_seqs} there are only"
            f" {len(batches)} batches to share out: choose smaller ones, or fewer shards"
        )
    share = share_out(batches, shard.count)[shard.index - 1]
    seconds, total = (sum(batch.num_samples for batch in some) / SAMPLE_RATE for some in (share, batches))
    print(
        f"Shard {shard}: {len(share)} of {len(batches)} batches, {sum(len(batch.utts) for batch in share)} of"
        f" {plan['num_utterances']} utterances, {seconds:.0f} of {total:.0f} s of audio.",
        flush=True,
    )
    return share, plan


def begin_shard(
    shard: Shard, output_dir: str, record: dict[str, Any], *, overwrite: bool, ignore: Collection[str]
) -> str:
    """
    Says so and ends the process if the whole run, or this shard, has finished before; in the latter case, if all other
    shards have finished, too, their results are merged first.

    :param shard:
    :param output_dir: of the whole run
    :param record: what the results depend on, see :func:`.run.stop_if_finished`
    :param overwrite: replace finished results
    :param ignore: keys of the record that may differ
    :return: folder of the shard
    :raises OptionError: there are results of another run
    """
    record = json.loads(json.dumps(record))  # tuples become lists, as in the files
    whole = {key: value for key, value in record.items() if key != "plan"} | {"shard": None}
    stop_if_finished(
        [os.path.join(output_dir, NBEST_FILE)],
        whole,
        overwrite=overwrite,
        ignore=ignore,
        summary_file=os.path.join(output_dir, "wer.txt"),
        write_record=False,
    )
    folder = shard.folder(output_dir)
    make_output_dir(folder)
    if not overwrite:
        unfinished = unfinished_shards(output_dir, shard.count)
        for other in shard.others():
            if other not in unfinished:
                _check_same_run(record, other, output_dir)
    try:
        stop_if_finished([os.path.join(folder, NBEST_FILE)], record, overwrite=overwrite, ignore=ignore)
    except SystemExit as exc:
        if not exc.code:
            merge_when_complete(shard, output_dir)
        raise
    return folder


def _check_same_run(record: dict[str, Any], other: Shard, output_dir: str) -> None:
    """:raises OptionError: the results of another shard are of another run"""
    try:
        its = read_record(other.folder(output_dir))
    except ShardError as exc:
        raise OptionError(str(exc)) from None
    if different := differences(its, record):
        raise OptionError(
            f"{other.folder(output_dir)} has the results of a run with other options (there and here:"
            f" {'; '.join(different)}). Choose another folder with ++output_dir, or repeat all shards with"
            " ++overwrite True."
        )


def merge_when_complete(shard: Shard, output_dir: str) -> None:
    """Merges the results of all shards if this was the last one; otherwise says which are not finished."""
    missing = unfinished_shards(output_dir, shard.count)
    if missing:
        print(
            f"Shard {shard} is done. Not finished: {', '.join(map(str, missing))}. The last one merges the results.",
            flush=True,
        )
        return
    try:
        summary = merge_shards(output_dir, shard.count)
    except AllFailedError as exc:
        raise SystemExit(f"error: {exc}") from None
    except ShardError as exc:  # this shard is right, others have still to be repeated
        print(f"Shard {shard} is done. Not merged: {exc}", flush=True)
        return
    print(f"{summary}All {shard.count} shards: n-best lists in {os.path.join(output_dir, NBEST_FILE)}", flush=True)
