"""`python -m hf_tl.cli` is `hf-tl`."""

import sys

from hf_tl.cli.main import main


sys.exit(main())
