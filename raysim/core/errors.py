"""The errors of raysim, each with the exit code of the command.

RaysimError
├── ConfigError              2   the command, the file or the data must be corrected
├── PlacementError           3   the cluster cannot serve the request
│   └── NodeError            3   ... because of one node
└── RunError                 1   the run failed
    ├── SiteError            1   ... at one site, in one round
    ├── ServerError          1   ... at the server, in one round
    ├── LostObjectError      1   ... because a lost node had an object of the run
    ├── ResumableError       1   ... for a reason outside the run
    └── Interrupted        130   the run was stopped on request
"""

from __future__ import annotations


class RaysimError(Exception):
    """Base class of all errors of raysim; `exit_code` is that of the command."""

    exit_code = 1
    remote = ""  # traceback of user code, from the process in which it failed


class ConfigError(RaysimError):
    """The command, the configuration or the data is invalid; nothing was started or written."""

    exit_code = 2


class PlacementError(RaysimError):
    """The request can never be placed on this cluster."""

    exit_code = 3


class NodeError(PlacementError):
    """A node of the cluster does not have the package versions of the command, or the data of the run."""


class RunError(RaysimError):
    """The run failed after its start; its records are kept."""


class SiteError(RunError):
    """A client function failed at a site. `remote` is the traceback where it happened.

    `has_no_result`: whether a new run has no result, because the error is in its first call and in the code of the
    algorithm.
    """

    def __init__(self, site: str, round: int, cause: str, remote: str = "", has_no_result: bool = False) -> None:
        super().__init__(site, round, cause, remote, has_no_result)
        self.site, self.round, self.cause, self.remote, self.has_no_result = site, round, cause, remote, has_no_result

    def __str__(self) -> str:
        return f"site '{self.site}' failed in round {self.round}: {self.cause}"


class LostObjectError(RunError):
    """An object of the run (a client state, a payload) was lost with a node; the run returns to its last checkpoint."""


class ResumableError(RunError):
    """The run failed for a reason outside the run, such as a full disk. The message explains how to resume it."""


class ServerError(RunError):
    """The server half of an algorithm failed. `remote` is the traceback where it happened.

    `has_no_result` as in SiteError.
    """

    def __init__(self, round: int, cause: str, remote: str = "", has_no_result: bool = False) -> None:
        super().__init__(round, cause, remote, has_no_result)
        self.round, self.cause, self.remote, self.has_no_result = round, cause, remote, has_no_result

    def __str__(self) -> str:
        return f"the server failed in round {self.round}: {self.cause}"


class Interrupted(RunError):
    """The run was stopped on request."""

    exit_code = 130
