"""`pneumobatch VERB JOB.toml [--section.key value …]`: parses and validates first, imports torch and ray afterwards.

Exit codes: 0 done; 1 the job failed, or another start holds its run; 2 wrong usage or configuration.
"""

from pneumobatch.cli import jobs as jobs  # which registers the verbs
from pneumobatch.cli import verbs as verbs
from pneumobatch.cli.line import main, run

__all__ = ["main", "run"]
