"""Do personal models beat the global model, and does FedSM close the gap to pooled data? All sites are inside.

python studies/inside.py DATA_FOLDER
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd
from common import (
    Job,
    arguments,
    budget,
    cell,
    configuration,
    one_row,
    report,
    score,
    tuned,
)

SETS = ("nuclei", "optic_disc", "retina")
REFERENCE = "fedavg"


def main() -> None:
    args = arguments("personal models inside", SETS)
    study = configuration("inside")
    for name in args.data:
        of_data = cell(study, name, args)
        found = tuned(study, [of_data], study["methods"], args)
        rows = {method: one_row([found[of_data, method]]) for method in study["methods"]}
        # The selector of FedSM-extra is trained in the second half of the rounds, so its last round is compared.
        rows["fedsm-extra"] = replace(rows["fedsm-extra"], round="last")
        for method, models in study["further"].items():
            rows |= {f"{method}, {model}": replace(rows[method], metric=f"dice@{model}") for model in models}
        more = {"budget": budget(study, found), "routes": routes(found[of_data, "fedsm"])}
        title = "Dice on the site's test images, %"
        report(args.pages / "inside.md", name, rows, more, title=title, reference=REFERENCE, pairs=study["claims"])


def routes(jobs: Mapping[int, Job]) -> pd.DataFrame:
    """The selector's accuracy and the routes of FedSM's test images; means over seeds, in per cent."""
    folders = {seed: one.folder for seed, one in jobs.items()}
    names = ("selector_accuracy", "routed_own", "routed_other", "routed_global")
    means = {name: f"{100 * score(folders, f'inside/test/{name}'):.0f}" for name in names}
    return pd.DataFrame([means], index=["fedsm"])


if __name__ == "__main__":
    main()
