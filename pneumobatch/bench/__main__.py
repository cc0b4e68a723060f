"""The process of one measurement: `python -m pneumobatch.bench`, started by `processes.measure`."""

from pneumobatch.bench import loops, measurements
from pneumobatch.bench.processes import answer

if __name__ == "__main__":
    answer(
        {
            function.__name__: function
            for function in (
                measurements.prepare, measurements.compiling, measurements.decode, measurements.network, loops.plain,
                loops.tuned, loops.pipeline,
            )
        }
    )  # fmt: skip
