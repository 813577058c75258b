"""``python -m tiepoint`` is ``tiepoint``."""

import sys

from .cli import main

sys.exit(main())
