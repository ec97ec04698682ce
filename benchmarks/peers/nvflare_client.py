"""The site's side of nvflare_work.py, the script that NVFlare runs in the process of a client.

It is a separate file, as in NVFlare's documentation, because a process that is started for one task should import
little.
"""

from __future__ import annotations

import sys

import nvflare.client as flare
import work


def main(folder: str) -> None:
    work.settle()
    flare.init()
    inputs, labels = work.data_of(folder, int(flare.get_site_name().removeprefix("site-")) - 1)
    net = work.resident()
    while flare.is_running():
        net.load_state_dict(flare.load_global().params)
        metrics, weight = {"loss": work.train(net, inputs, labels)}, {"NUM_STEPS_CURRENT_ROUND": len(inputs)}
        flare.make_update(flare.FLModel(params=net.state_dict(), metrics=metrics, meta=weight))


if __name__ == "__main__":
    main(sys.argv[1])
