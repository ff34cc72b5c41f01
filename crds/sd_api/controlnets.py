"""Eleven ControlNets for SD 1.5, which load by model id alone.

The ids are those of the vendor, the hosted service that the gateway replaces.
"""

from __future__ import annotations

CONTROLNET_REPOS = {
    "inpaint": "lllyasviel/control_v11p_sd15_inpaint",
    "ip2p": "lllyasviel/control_v11e_sd15_ip2p",
    "tile": "lllyasviel/control_v11f1e_sd15_tile",
    "shuffle": "lllyasviel/control_v11e_sd15_shuffle",
    "softedge": "lllyasviel/control_v11p_sd15_softedge",
    "scribble": "lllyasviel/control_v11p_sd15_scribble",
    "lineart": "lllyasviel/control_v11p_sd15_lineart",
    "normalbae": "lllyasviel/control_v11p_sd15_normalbae",
    "depth": "lllyasviel/control_v11f1p_sd15_depth",
    "mlsd": "lllyasviel/control_v11p_sd15_mlsd",
    "canny": "lllyasviel/control_v11p_sd15_canny",
}
