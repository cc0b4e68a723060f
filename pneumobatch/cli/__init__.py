"""`pneumobatch VERB JOB.toml [--section.key value …]`: parses and validates first, imports torch and ray afterwards.

Exit codes: 0 done; 1 the job failed, or another start holds its run; 2 wrong usage or configuration.
"""

from pneumobatch.cli import jobs, verbs
from pneumobatch.cli.main import main, run

__all__ = ["jobs", "main", "run", "verbs"]
