"""Hardware that prices `Work`. One file per family; `platform(name)` finds presets and files."""

from accelsim.platforms import fpga as fpga
from accelsim.platforms import roofline as roofline
from accelsim.platforms import systolic as systolic
from accelsim.platforms.base import Platform, describe, from_mapping, names, parse_value, platform

__all__ = ["Platform", "describe", "from_mapping", "names", "parse_value", "platform"]
