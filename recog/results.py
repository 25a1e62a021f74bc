"""
The files of a finished run: n-best lists, and the WER table that is made of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping

from .nbest import NBestHeader, NBestWriter, Utterance, open_text_for_writing, write_returnn_search_output
from .wer import run_name, score_table, score_utterances

__all__ = ["write_results"]

_NUM_EXAMPLES = 10
"""So many utterances that failed are named in the summary; all of them in the n-best file."""


def write_results(
    folder: str,
    *,
    header: NBestHeader,
    utterances: Iterable[Utterance],
    seconds: Mapping[str, float],
    returnn_search_output: bool = False,
    name: str | None = None,
) -> str:
    """
    Writes all files of a run; ``nbest.jsonl`` comes last.

    :param folder: for the files
    :param header: of the n-best file
    :param utterances: sorted by sequence tag; they are read more than once, so this must not be an iterator
    :param seconds: "audio": of all utterances, "encoder", "search": computing time
    :param returnn_search_output: write search_out.py, too
    :param name: of the run, in the table. None: as :func:`recog.wer.run_name` says
    :return: WER table and real time factors
    """
    nbest_file = os.path.join(folder, "nbest.jsonl")
    score = score_utterances(utterances)
    table = score_table({name or run_name(nbest_file): (header.search, score)})
    times = _times(seconds)
    summary = f"{table}\n{_time_summary(times)}\n"
    num_utts, failed = 0, []
    for utt in utterances:
        num_utts += 1
        if utt.error is not None:
            failed.append(f"{utt.seq_tag}: {utt.error}")
    if failed:
        examples = "; ".join(failed[:_NUM_EXAMPLES]) + ("; ..." if len(failed) > _NUM_EXAMPLES else "")
        summary += f"{len(failed)} of {num_utts} utterances failed: {examples}\n"
    if returnn_search_output:
        write_returnn_search_output(os.path.join(folder, "search_out.py"), utterances)
    with open_text_for_writing(os.path.join(folder, "wer.json")) as file:
        json.dump({"search": header.search, **score.as_dict(), "time": times}, file, indent=2, allow_nan=False)
        file.write("\n")
    with open_text_for_writing(os.path.join(folder, "wer.txt")) as file:
        file.write(summary)
    with NBestWriter(nbest_file, header) as writer:
        for utt in utterances:
            writer.write(utt)
    return summary


def _times(seconds: Mapping[str, float]) -> dict[str, float | None]:
    """:return: seconds, and real time factors (computing time divided by audio time); None without audio"""
    computing = {
        "encoder": seconds["encoder"],
        "search": seconds["search"],
        "total": seconds["encoder"] + seconds["search"],
    }
    audio = seconds["audio"]
    return {
        "audio_seconds": audio,
        **{f"{name}_seconds": value for name, value in computing.items()},
        **{f"{name}_real_time_factor": value / audio if audio else None for name, value in computing.items()},
    }


def _time_summary(times: Mapping[str, float | None]) -> str:
    """:return: a line"""
    if not times["audio_seconds"]:
        return "Real time factor: not defined, there was no audio."
    return (
        f"Real time factor {times['total_real_time_factor']:.4f}: encoder {times['encoder_real_time_factor']:.4f},"
        f" search {times['search_real_time_factor']:.4f} ({times['audio_seconds']:.0f} s of audio in"
        f" {times['total_seconds']:.1f} s of computing time)."
    )
