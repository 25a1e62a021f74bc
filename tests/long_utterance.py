#!/usr/bin/env python3
"""
Recognises long utterances, made of utterances of the demo corpus one after the other, and shows WER and memory.

    python tests/long_utterance.py --data data/demo --checkpoint output/demo_train/models/epoch.007.pt --seconds 35 600

Needs make demo. Takes some minutes, and memory for the square of the longest utterance.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import zipfile

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from recog.nbest import audit, load_nbest
from recog.prepared_corpus import ListedUtterance, format_listing, iter_listing
from tools.corpus.audio import SAMPLE_RATE, encode_audio, read_audio

REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def main() -> None:
    """Exits with 1 if an utterance was not recognised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="FOLDER", help="prepared demo corpus")
    parser.add_argument("--checkpoint", required=True, metavar="FILE")
    parser.add_argument("--seconds", type=float, nargs="+", default=[35.0, 600.0])
    parser.add_argument("--configs", nargs="+", default=["demo_recog_ctc", "demo_recog_labelsync"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_corpus(args.data, os.path.join(folder, "demo"), args.seconds)
        for name in args.configs:
            command = [os.path.join(os.path.dirname(sys.executable), "rnn.py")]
            command += [os.path.join(REPO, "configs", f"{name}.config"), "++data_dir", folder, "++recog_parts", "dev"]
            command += ["++load", os.path.abspath(args.checkpoint), "++num_workers", "0"]
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
            output = os.path.join(folder, "output", name)
            header, utts = load_nbest(os.path.join(output, "nbest.jsonl"))
            with open(os.path.join(output, "wer.txt"), encoding="utf8") as file:
                print(file.read())
            for utt in utts:
                print(f"{utt.seq_tag}: {utt.duration:.0f} s, {utt.enc_len} frames, error: {utt.error}")
            gib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
            print(f"at most {gib:.2f} GiB of memory so far\n", flush=True)
            if audit(header, utts) or any(utt.error for utt in utts):
                sys.exit(1)


def make_corpus(source: str, target: str, all_seconds: list[float]) -> None:
    """A prepared corpus whose part dev has an utterance of each of these durations, or somewhat longer."""
    os.makedirs(target)
    shutil.copytree(os.path.join(source, "vocab"), os.path.join(target, "vocab"))
    zip_file = os.path.join(source, "dev.zip")
    listing = list(iter_listing(zip_file))
    entries, contents = [], {}
    with zipfile.ZipFile(zip_file) as archive:
        for seconds in all_seconds:
            pieces, texts, i = [], [], 0
            while sum(map(len, pieces)) < seconds * SAMPLE_RATE:
                entry = listing[i % len(listing)]
                pieces.append(read_audio(archive.read(f"dev/{entry.file}"))[0])
                texts.append(entry.text or "")
                i += 1
            audio = np.concatenate(pieces)
            name = f"{seconds:g}s"
            contents[f"dev/{name}.flac"] = encode_audio(audio, "flac")
            duration = len(audio) / SAMPLE_RATE
            entries.append(ListedUtterance(" ".join(texts), duration, f"{name}.flac", f"dev/{name}"))
    contents["dev.txt"] = format_listing(entries)
    with zipfile.ZipFile(os.path.join(target, "dev.zip"), "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    with open(os.path.join(target, "corpus.json"), "w", encoding="utf8") as file:
        json.dump({"corpus": "demo", "parts": {"dev": {"file": "dev.zip", "num_seqs": len(entries)}}}, file)


if __name__ == "__main__":
    main()
