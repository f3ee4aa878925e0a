"""The command line with the tests' tiny network, for processes that train together: python member.py train ..."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import TINY_BACKBONE

from tillwatch import cli
from tillwatch.models.backbones import BACKBONES

if __name__ == "__main__":
    BACKBONES["tinynet"] = TINY_BACKBONE
    cli.main()
