"""The cure for a class that is named by its file."""

from __future__ import annotations

import pytest

from raysim.core.errors import ConfigError
from raysim.core.registry import algorithm_class, import_cure


@pytest.mark.parametrize(
    ("name", "cure"),
    [
        ("forgot.py:Forgot", "; use forgot:Forgot (module without .py)"),
        ("./my/forgot.py:Forgot", "; use my.forgot:Forgot (module without .py)"),
        ("forgot.py", "; use forgot:CLASS (module without .py)"),
        ("/x/y/forgot.py:Forgot", "; change to the folder /x/y and use forgot:Forgot (module without .py)"),
        ("forgot:Forgot", "; correct the module, which must be in the working directory or installed"),
        ("fedavgg", ""),
    ],
)
def test_the_name_to_write(name: str, cure: str) -> None:
    assert import_cure(name) == cure
    if cure:
        with pytest.raises(ConfigError) as error:
            algorithm_class(name)
        assert str(error.value).endswith(cure)
