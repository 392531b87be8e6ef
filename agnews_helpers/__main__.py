"""``python -m agnews_helpers`` is the ``agnews`` command."""

from .cli import main

raise SystemExit(main())
