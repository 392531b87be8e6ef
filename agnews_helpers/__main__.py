"""``python -m agnews_helpers`` is the ``agnews`` command."""

import sys

from .cli import main

sys.exit(main())
