from __future__ import annotations

import sys
from pathlib import Path

# The scripts import one another as the programs they are: by their own names.
sys.path.append(str(Path(__file__).parents[2] / "scripts"))
