"""python -m pytest_isolate.cli"""

import sys

from pytest_isolate.cli import main

sys.exit(main())
