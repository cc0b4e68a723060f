"""Coverage-guided fuzzing of the decoder: any bytes under any name end as a film, a DecodeError or a DomainError.

By hand, from the repository's root, with the extra `fuzz` installed; nothing of it runs with the test suite:

    python tests/fuzz/fuzz_decode.py FOLDER -max_total_time=240 -timeout=20 -rss_limit_mb=2048

FOLDER keeps the inputs that reached new code; an empty one is filled from the corpus of `tests/corpus.py` first. The
options are libFuzzer's. A finding (another exception, a crash, a hang, too much memory) is written to `crash-…`,
`timeout-…` or `oom-…`; FILE instead of FOLDER repeats it. The first byte of an input chooses the name that the rest is
decoded under. What is found is fixed, and its smallest form becomes a case of the tests in tests/archive.

The decoder runs in this process, without the sandbox that screening puts around it: a crash in native code is a
finding here, and costs screening one film.
"""

import contextlib
import logging
import os
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))

DICTIONARIES = ["pydicom._dicom_dict", "pydicom._private_dict", "pydicom._uid_dict", "pydicom.sr"]  # data, and long

with atheris.instrument_imports(include=["pneumobatch.archive", "PIL", "pydicom"], exclude=DICTIONARIES):
    import corpus
    import pydicom.pixels.decoders.base
    import pydicom.pixels.processing  # noqa: F401 - which the decoder imports only when it meets DICOM

    from pneumobatch.archive.pixels import DecodeError, DomainError, decode
    from pneumobatch.config import Gate

NAMES = ("film", "film.jpeg", "film.png", "film.dcm")
LONGEST = 65_536
"""Bytes of an input; longer ones of the corpus are left out, as each costs as much as a hundred short ones."""


def one_input(data: bytes) -> None:
    """Decodes one input; what else it raises is a finding."""
    with contextlib.suppress(DecodeError, DomainError):
        decode(data[1:], NAMES[data[0] % len(NAMES)] if data else "", 32, max_pixels=1_000_000, gate=GATE, ages=(1, 5))


GATE = Gate()


def main() -> None:
    """Fills an empty folder of inputs, and fuzzes."""
    folders = [Path(argument) for argument in sys.argv[1:] if not argument.startswith("-")]
    if folders and not folders[0].exists():
        folders[0].mkdir(parents=True)
    if folders and folders[0].is_dir() and not any(folders[0].iterdir()):
        for name, data in corpus.films(seed=0):
            if len(data) < LONGEST:
                (folders[0] / name).write_bytes(b"\0" + data)
    logging.disable(logging.CRITICAL)
    os.environ["PNEUMOBATCH_SITE_KEY"] = "fuzz"  # identities are read only with a key
    atheris.Setup([sys.argv[0], f"-max_len={LONGEST}", *sys.argv[1:]], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
