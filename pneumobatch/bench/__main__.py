"""The process of one measurement: `python -m pneumobatch.bench`, started by `processes.measure`."""

from importlib import import_module

from pneumobatch.bench.processes import Measurement, answer

MODULES = {
    "measurements": ("prepare", "packing", "compiling", "decode", "decode_accelerator", "network"),
    "loops": ("plain", "tuned"),
    "pipeline": ("pipeline",),
    "training": ("training", "training_plain"),
    "sizes": ("catalogue", "publish", "anti_join", "summary"),
}
"""Where each measurement lies; only its own module is imported, so that Ray weighs on the pipeline alone."""


def _find(name: str) -> Measurement:
    module = next(module for module, names in MODULES.items() if name in names)
    measurement: Measurement = getattr(import_module(f"pneumobatch.bench.{module}"), name)
    return measurement


if __name__ == "__main__":
    answer(_find)
