"""What can go wrong, and the exit code that says so.

RaysimError
├── ConfigError        2   the user can fix the command, the file or the data
├── PlacementError     3   what is asked for does not fit the cluster
└── RunError           1   the run failed
    ├── SiteError      1   ... at one site, in one round
    ├── ServerError    1   ... at the server, in one round
    └── LostError      1   ... with a node that held what the run needs; it goes on from its last checkpoint
"""

from __future__ import annotations


class RaysimError(Exception):
    """Anything raysim refuses or reports; `exit_code` is what the command line returns."""

    exit_code = 1
    remote = ""  # the traceback of a user's code, from the process where it failed


class ConfigError(RaysimError):
    """The command, the configuration or the data is wrong; nothing was started or written."""

    exit_code = 2


class PlacementError(RaysimError):
    """What was asked for can never be placed on this cluster."""

    exit_code = 3


class NodeError(PlacementError):
    """A node of the cluster has not what the run needs: the command's versions, or the data."""


class RunError(RaysimError):
    """The run failed after it had started; what was recorded is kept."""


class SiteError(RunError):
    """A client function failed at a site. `remote` is the traceback where it happened."""

    def __init__(self, site: str, round: int, cause: str, remote: str = "") -> None:
        super().__init__(site, round, cause, remote)
        self.site, self.round, self.cause, self.remote = site, round, cause, remote

    def __str__(self) -> str:
        return f"site '{self.site}' failed in round {self.round}: {self.cause}"


class LostObjectError(RunError):
    """What the run needs (a memory, a payload) went away with a node. The run goes back to its last checkpoint."""


class ServerError(RunError):
    """An algorithm's half at the server failed. `remote` is the traceback where it happened."""

    def __init__(self, round: int, cause: str, remote: str = "") -> None:
        super().__init__(round, cause, remote)
        self.round, self.cause, self.remote = round, cause, remote

    def __str__(self) -> str:
        return f"the server failed in round {self.round}: {self.cause}"


class Interrupted(RunError):
    """Someone asked the run to stop."""

    exit_code = 130
