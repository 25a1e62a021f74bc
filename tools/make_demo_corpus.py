#!/usr/bin/env python3
"""
Makes the demo corpus: synthetic speech of a closed command vocabulary, in LibriSpeech's layout.

  python tools/make_demo_corpus.py data/demo/source

No recorded speech is needed and nothing is downloaded: eSpeak NG (package espeakng-loader) speaks. Writes the parts
train, dev and test (16 kHz FLAC and transcripts; speakers and sentences of dev and test are not in train),
SPEAKERS.TXT, and lm.txt, text for a language model without the sentences of dev and test. The same versions of the
packages make the same files, bit by bit; their checksums are in demo_corpus.json. Can be interrupted and started again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from recog.json_file import JsonError, read_json_object
from recog.progress import Progress

FORMAT = 1
"""Increase when the corpus changes, so that nobody mixes an old one with new results."""
PACKAGES = ("espeakng-loader", "numpy", "scipy", "soundfile")


def main(argv: list[str] | None = None) -> None:
    """Command line; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dst", metavar="DST", help="folder to make")
    parser.add_argument("--num-train", type=_at_least_one, default=3000, help="utterances of train (%(default)s)")
    parser.add_argument("--num-eval", type=_at_least_one, default=180, help="utterances of dev, of test (%(default)s)")
    parser.add_argument("--num-lm", type=_at_least_one, default=20_000, help="sentences of the LM text (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="another seed, another corpus (%(default)s)")
    parser.add_argument("--workers", type=_at_least_one, default=os.cpu_count() or 1, help="processes (%(default)s)")
    args = parser.parse_args(argv)
    try:
        versions = {name: version(name) for name in PACKAGES}
    except PackageNotFoundError as exc:
        sys.exit(f"error: the package {exc.name} is missing: pip install -c constraints.txt -e '.[demo]'")
    options = {name: getattr(args, name) for name in ("num_train", "num_eval", "num_lm", "seed")}
    info_file = os.path.join(args.dst, "demo_corpus.json")
    recipe = {"format": FORMAT, "options": options, "versions": versions}
    if before := _read_info(args.dst, info_file, recipe):
        print(f"{args.dst} is complete: {before['hours']:.2f} hours, {before['num_seqs']} utterances")
        return
    os.makedirs(args.dst, exist_ok=True)
    _write(info_file, json.dumps(recipe, indent=2))
    from tools.corpus.espeak import SpeechError

    try:
        info = {**recipe, **make(args.dst, workers=args.workers, **options)}
    except (SpeechError, OSError) as exc:
        sys.exit(f"error: {exc}. When this is repaired, start the same command again: it continues.")
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; start the same command again: it continues.")
    _write(info_file, json.dumps(info, indent=2))
    print(f"{args.dst}: {info['hours']:.2f} hours, {info['num_seqs']} utterances, {info['num_speakers']} speakers")


def make(folder: str, *, num_train: int, num_eval: int, num_lm: int, seed: int, workers: int) -> dict[str, Any]:
    """
    :param folder: what is there already is kept
    :param num_train: utterances
    :param num_eval: utterances of dev, and of test
    :param num_lm: sentences
    :param seed:
    :param workers: processes
    :return: counts and checksums
    """
    from tools.corpus.demo_speech import PARTS, make_speakers, plan  # late: takes longer than to see that all is done

    speakers, lm_text = plan(num_train=num_train, num_eval=num_eval, num_lm=num_lm, seed=seed)
    num_seqs = {part: sum(len(s.sentences) for s in speakers if s.part == part) for part in PARTS}
    total, seconds, done = sum(num_seqs.values()), 0.0, 0
    checksums = {}
    progress = Progress("demo corpus")
    progress.update(0.0)
    for recorded in make_speakers(speakers, folder, seed=seed, workers=workers):
        seconds += recorded.seconds
        done += recorded.num_seqs
        checksums[recorded.folder] = recorded.sha256
        progress.update(done / total, f"{done} of {total} utterances")
    lines = [f"; {'number':6} | {'part':5} | voice of eSpeak NG, words per minute, pitch, range"]
    for speaker in speakers:
        v = speaker.voice
        lines.append(
            f"{speaker.number:8} | {speaker.part:5} | {v.accent}+{v.variant}, {v.rate}, {v.pitch}, {v.pitch_range}"
        )
    for name, content in {"SPEAKERS.TXT": lines, "lm.txt": [sentence.upper() for sentence in lm_text]}.items():
        text = "\n".join(content)
        _write(os.path.join(folder, name), text)
        checksums[name] = hashlib.sha256(f"{text}\n".encode()).hexdigest()
    return {"hours": seconds / 3600, "num_seqs": num_seqs, "num_speakers": len(speakers), "sha256": checksums}


def _read_info(folder: str, info_file: str, recipe: dict[str, Any]) -> dict[str, Any] | None:
    """:return: what is known of a corpus that is complete; None if there is something to do"""
    if not os.path.isfile(info_file):
        if os.path.isdir(folder) and os.listdir(folder):
            sys.exit(f"error: {folder} is not empty and holds no demo corpus: choose another folder")
        return None
    try:
        before = read_json_object(info_file)
    except JsonError:
        sys.exit(f"error: {info_file} is damaged: remove {folder} and start again")
    if differing := [key for key, value in recipe.items() if before.get(key) != value]:
        what = "; ".join(f"{key} {before.get(key)} instead of {recipe[key]}" for key in differing)
        sys.exit(
            f"error: {folder} holds a demo corpus that was made in another way ({what}):"
            " remove it, or choose another folder"
        )
    if any(not os.path.exists(os.path.join(folder, name)) for name in before.get("sha256", {})):
        return None  # something was removed since: it is made again
    return before if "sha256" in before else None


def _at_least_one(text: str) -> int:
    """Type of an argument."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: expected at least 1")
    return value


def _write(filename: str, content: str) -> None:
    """Under a temporary name first."""
    with open(filename + ".tmp", "w", encoding="utf8", newline="\n") as file:
        file.write(content + "\n")
    os.replace(filename + ".tmp", filename)


if __name__ == "__main__":
    main()
